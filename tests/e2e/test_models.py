"""Where models come from, in the real server process: the hub, files, models.toml read again."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import gguf
import pytest

from tests.fake_hub import HubServer, serve_hub
from tests.serving import ServerProcess, command_environment, server_process, wait_until
from tests.tiny_models import write_llama

REPO = "owner/tiny-GGUF"
FILE = "Tiny-Q8_0.gguf"
HUB_MODEL = f'[models.hubbed]\nhf = "{REPO}:Q8_0"\ncontext_length = 256\n'
LOCAL_MODEL = '[models.local]\npath = "tiny.gguf"\ncontext_length = 256\naliases = ["default"]\n'


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    shutil.copy(tiny, tmp_path / "tiny.gguf")
    return tmp_path


@pytest.fixture
def hub(tiny: Path) -> Iterator[HubServer]:
    with serve_hub() as running:
        running.repos[REPO] = {FILE: tiny.read_bytes()}
        yield running


def write_config(folder: Path, models: str, server: str = "preload = false") -> Path:
    path = folder / "models.toml"
    path.write_text(f"[server]\n{server}\n{models}")
    return path


def hub_environment(folder: Path, endpoint: str, *, offline: bool = False) -> dict[str, str]:
    """A cache of its own, whatever the caller of the tests has set."""
    home = folder / "hf"
    return {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": "",
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }


def run_command(folder: Path, env: dict[str, str], *args: str) -> str:
    """What the command line prints."""
    done = subprocess.run(
        [sys.executable, "-m", "llmserve", *args],
        cwd=folder,
        env={**command_environment(), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(server: ServerProcess, model: str) -> tuple[int, str]:
    """Status, and the text or the error's message."""
    parameters = {"max_tokens": 4, "ignore_eos": True, "seed": 1}
    body = {"model": model, "prompt": "Hi", "parameters": parameters}
    response = server.post("/inference", body)
    answer = response.json()
    if "error" in answer:
        return response.status_code, answer["error"]["message"]
    return response.status_code, answer["generated_text"]


def check_answers(server: ServerProcess, model: str) -> None:
    status, text = ask(server, model)
    assert status == 200, text
    assert text


# -- the hub -------------------------------------------------------------------------------------


def test_without_auto_download_the_command_is_told(folder: Path, hub: HubServer) -> None:
    config = write_config(folder, HUB_MODEL + LOCAL_MODEL)
    with server_process(config, env=hub_environment(folder, hub.url)) as server:
        status, message = ask(server, "hubbed")
        assert status == 503
        assert message.endswith("run: scripts/download-model hubbed")
        assert not hub.seen
        check_answers(server, "local")


def test_auto_download_answers_after_the_download(folder: Path, hub: HubServer) -> None:
    config = write_config(folder, HUB_MODEL, "preload = false\nauto_download = true")
    with server_process(config, env=hub_environment(folder, hub.url)) as server:
        assert not hub.seen, "nothing is downloaded before somebody asks"
        check_answers(server, "hubbed")
        assert len(hub.gets(FILE)) == 1
        log = "".join(server.log)
        assert f"hubbed: {REPO}: Q8_0 ({FILE})" in log
        assert f"hubbed: downloading {FILE}" in log
        assert "are on disk" in log
        server.post("/models/hubbed/unload")
        hub.seen.clear()
        check_answers(server, "hubbed")
        assert not hub.seen


def test_a_download_under_way_is_shown_and_holds_up_no_shutdown(
    folder: Path, hub: HubServer
) -> None:
    half = len(hub.repos[REPO][FILE]) // 2
    hub.hang_after[FILE] = half
    config = write_config(
        folder, HUB_MODEL + LOCAL_MODEL, "preload = false\nauto_download = true\nload_wait_s = 0"
    )
    with server_process(config, env=hub_environment(folder, hub.url)) as server:
        status, message = ask(server, "hubbed")
        assert status == 503
        assert "still loading" in message
        wait_until(lambda: server.model("hubbed")["progress"], "some progress")
        shown = server.model("hubbed")
        assert (shown["state"], shown["doing"]) == ("loading", "downloading")
        assert 0 < shown["progress"] < 0.6
        status, message = ask(server, "hubbed")
        assert status == 503
        assert "downloading, " in message
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_what_is_on_disk_works_without_the_hub(folder: Path, hub: HubServer, offline: bool) -> None:
    config = write_config(folder, HUB_MODEL, "auto_download = true")
    run_command(folder, hub_environment(folder, hub.url), "pull", "hubbed")
    hub.seen.clear()
    nobody = "http://127.0.0.1:9"  # the discard port: refused at once
    env = hub_environment(folder, hub.url if offline else nobody, offline=offline)
    with server_process(config, env=env) as server:
        check_answers(server, "hubbed")
    assert " ERROR " not in "".join(server.log)
    shown = run_command(folder, env, "models")
    assert re.search(r"hubbed +- +\d+ kB", shown)
    assert not hub.seen


# -- files ---------------------------------------------------------------------------------------


def test_a_file_that_is_no_model_of_the_config_is_never_loaded(folder: Path) -> None:
    """Not even a good model, by any spelling of its path."""
    other = folder / "weights" / "other.gguf"
    other.parent.mkdir()
    shutil.copy(folder / "tiny.gguf", other)
    names = [str(other), "weights/other.gguf", "./weights/other.gguf", f"file://{other}"]
    names += ["../../etc/passwd", "/etc/passwd", "local/", "tiny.gguf", "local\0"]
    with server_process(write_config(folder, LOCAL_MODEL)) as server:
        for name in names:
            status, message = ask(server, name)
            assert status == 404, message
            for spelled in (quote(name), quote(name, safe="")):
                for command in ("load", "unload"):
                    assert server.post(f"/models/{spelled}/{command}").status_code == 404
        assert server.model("local")["state"] == "cold"
        assert not any("loading" in line for line in server.log)


def test_a_broken_file_is_a_503_with_the_reason(folder: Path) -> None:
    (folder / "text.gguf").write_text("this is no model, " * 100)
    whole = (folder / "tiny.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    models = '[models.text]\npath = "text.gguf"\n[models.cut]\npath = "cut.gguf"\n'
    with server_process(write_config(folder, LOCAL_MODEL + models)) as server:
        for name, reason in (("text", "is this a GGUF file?"), ("cut", "truncated")):
            status, message = ask(server, name)
            assert status == 503
            assert reason in message
            shown = server.model(name)
            assert shown["state"] == "failed"
            assert shown["error"] == message
        check_answers(server, "local")
        (folder / "cut.gguf").write_bytes(whole)  # mended: the next request tries again
        check_answers(server, "cut")


def test_a_split_model_loads_by_its_first_part(folder: Path) -> None:
    _split(folder / "tiny.gguf", folder / "parts")
    models = '[models.parts]\npath = "parts-00001-of-00002.gguf"\ncontext_length = 256\n'
    with server_process(write_config(folder, LOCAL_MODEL + models)) as server:
        check_answers(server, "parts")
        assert ask(server, "parts") == ask(server, "local")
        assert server.model("parts")["bytes"] > 0
    (folder / "parts-00002-of-00002.gguf").unlink()
    with server_process(write_config(folder, LOCAL_MODEL + models)) as server:
        status, message = ask(server, "parts")
        assert status == 503
        assert "parts-00002-of-00002.gguf" in message


def _split(path: Path, stem: Path) -> None:
    """`path` as two files of about half of its tensors each."""
    reader = gguf.GGUFReader(path)
    half = len(reader.tensors) // 2
    writer = gguf.GGUFWriter(stem, "llama", split_max_tensors=len(reader.tensors) - half)
    for key, item in reader.fields.items():
        if not key.startswith("GGUF.") and key != gguf.Keys.General.ARCHITECTURE:
            kind = item.types[0]
            sub_kind = item.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, item.contents(), kind, sub_kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# -- staying and leaving -------------------------------------------------------------------------


def test_an_idle_model_leaves_and_a_pinned_one_stays(folder: Path) -> None:
    pinned = '[models.pinned]\npath = "tiny.gguf"\ncontext_length = 512\npinned = true\n'
    config = write_config(folder, pinned + LOCAL_MODEL + 'keep_alive = "300ms"\n')
    with server_process(config) as server:
        check_answers(server, "pinned")
        check_answers(server, "local")
        wait_until(lambda: server.model("local")["state"] == "cold", "the idle model to leave")
        server.wait_log("local was idle")
        assert server.model("pinned")["state"] == "ready"
        assert server.model("pinned")["pinned"] is True
        check_answers(server, "local")


def test_what_is_chosen_for_the_context_is_printed_and_shown(folder: Path) -> None:
    models = '[models.open]\npath = "tiny.gguf"\n'
    with server_process(write_config(folder, models, "preload = true")) as server:
        shown = server.model("open")
        assert (shown["context_length"], shown["slots"]) == (2048, 16)  # as it was trained
        server.wait_log("loading open from path")
        assert any("2,048 tokens of context, 16 at a time" in line for line in server.log)


@pytest.mark.parametrize("by_signal", [True, False], ids=["SIGHUP", "POST"])
def test_models_toml_is_read_again(folder: Path, by_signal: bool) -> None:
    config = write_config(folder, LOCAL_MODEL)

    def reload(words: str) -> None:
        if by_signal:
            server.signal(signal.SIGHUP)
            server.wait_log(words)
        else:
            response = server.post("/models/reload")
            assert (response.status_code, words in response.text) in ((200, False), (400, True))

    with server_process(config) as server:
        check_answers(server, "local")
        config.write_text('[models.local]\npaht = "tiny.gguf"\n')
        reload("did you mean path?")
        config.write_text('[models.lost]\npath = "lost.gguf"\n')
        reload("there is no file")
        check_answers(server, "local")
        config.write_text('[models.added]\npath = "tiny.gguf"\ncontext_length = 256\n')
        reload("reloaded ")
        check_answers(server, "added")
        assert ask(server, "local")[0] == 404
        server.wait_log("unloaded local")
