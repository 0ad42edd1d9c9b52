import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.config.hub_ref import BadRefError, HubRef, check_repo_path, make_ref, parse_ref
from llmserve.config.load import load_config
from llmserve.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("owner/repo", HubRef("owner/repo")),
        ("owner/repo:q4_k_m", HubRef("owner/repo", quant="q4_k_m")),
        ("Qwen/Qwen3-0.6B-GGUF:UD-Q4_K_XL", HubRef("Qwen/Qwen3-0.6B-GGUF", quant="UD-Q4_K_XL")),
        ("https://huggingface.co/owner/repo", HubRef("owner/repo")),
        ("https://huggingface.co/owner/repo/tree/main", HubRef("owner/repo")),
        ("hf.co/owner/repo:Q8_0", HubRef("owner/repo", quant="Q8_0")),
        (
            "https://huggingface.co/owner/repo/blob/v1/sub/x%20y.gguf?download=true",
            HubRef("owner/repo", file="sub/x y.gguf", revision="v1"),
        ),
    ],
)
def test_what_people_write(text: str, ref: HubRef) -> None:
    assert parse_ref(text) == ref


@pytest.mark.parametrize(
    ("hf", "keys", "bad"),
    [
        ("", {}, "hf"),
        ("repo", {}, "hf"),
        ("a/b/c", {}, "hf"),
        ("../../etc/passwd", {}, "hf"),
        ("../passwd", {}, "hf"),
        ("owner/..", {}, "hf"),
        ("owner/a--b", {}, "hf"),
        ("owner/-b", {}, "hf"),
        ("https://evil.example/owner/repo", {}, "hf"),
        ("owner/" + "a" * 100, {}, "hf"),
        ("owner/repo:", {}, "hf"),
        ("owner/repo:../x", {}, "hf"),
        ("owner/repo:Q4_K_M", {"file": "x.gguf"}, "file"),
        ("owner/repo", {"file": "../x.gguf"}, "file"),
        ("owner/repo", {"file": "/etc/x.gguf"}, "file"),
        ("owner/repo", {"file": "a\\..\\x.gguf"}, "file"),
        ("owner/repo", {"file": "a//x.gguf"}, "file"),
        ("owner/repo", {"file": "config.json"}, "file"),
        ("owner/repo", {"revision": "../../x"}, "revision"),
        ("owner/repo", {"revision": "/x"}, "revision"),
        ("owner/repo", {"revision": ""}, "revision"),
        ("owner/repo", {"sha256": "abc"}, "sha256"),
        ("owner/repo", {"sha256": "x" * 64}, "sha256"),
    ],
)
def test_what_is_refused_and_for_which_key(hf: str, keys: dict[str, str], bad: str) -> None:
    with pytest.raises(BadRefError) as caught:
        make_ref(hf, **keys)
    assert caught.value.key == bad


def test_sha256_is_lower_case() -> None:
    assert make_ref("owner/repo", sha256=SHA256.upper()).sha256 == SHA256


@given(st.text(alphabet="ab./\\-", max_size=12))
def test_a_path_that_passes_never_climbs(path: str) -> None:
    if check_repo_path(path):
        assert (Path("/cache") / path).resolve().is_relative_to("/cache")


class TestConfig:
    def load(self, tmp_path: Path, text: str) -> HubRef | None:
        file = tmp_path / "models.toml"
        file.write_text(text)
        return load_config(file).models[0].hub

    def test_an_hf_source(self, tmp_path: Path) -> None:
        text = f'[models.m]\nhf = "o/r"\nfile = "x.gguf"\nrevision = "v1"\nsha256 = "{SHA256}"'
        ref = self.load(tmp_path, text)
        assert ref == HubRef("o/r", file="x.gguf", revision="v1", sha256=SHA256)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('hf = "o"', "models.m.hf: 'o' is not a valid repository; write owner/repo"),
            ('hf = "o/r:Q4_0"\nfile = "x.gguf"', "models.m.file: hf already names"),
            ('hf = "o/r"\nsha256 = "12"', "models.m.sha256: '12' is not 64"),
            ('hf = "o/r"\nfile = "../x.gguf"', "models.m.file: '../x.gguf' is not a valid path"),
            ('path = "x.gguf"\nrevision = "v1"', "models.m.revision: only goes with hf, not path"),
            ('path = "x.gguf"\nfile = "y"', "models.m.file: only goes with package or hf"),
            ('package = "p"', "models.m.file: missing"),
            ('path = "x.gguf"\nhf = "o/r"', "has path and hf; give exactly one of"),
        ],
    )
    def test_what_it_refuses(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.load(tmp_path, f"[models.m]\n{text}")
        assert says in caught.value.message

    def test_auto_download_is_off_unless_asked_for(self, tmp_path: Path) -> None:
        file = tmp_path / "models.toml"
        file.write_text('[models.m]\nhf = "o/r"')
        assert load_config(file).server.auto_download is False
        file.write_text('[server]\nauto_download = true\n[models.m]\nhf = "o/r"')
        assert load_config(file).server.auto_download is True


def test_the_suggestions_in_models_toml_are_valid() -> None:
    text = (ROOT / "models.toml").read_text()
    entries = re.findall(r'^# (\[models\.\w+\])\n# (hf = "[^"]+")', text, re.MULTILINE)
    assert len(entries) >= 6
    for header, source in entries:
        (entry,) = tomllib.loads(f"{header}\n{source}")["models"].values()
        assert make_ref(entry["hf"]).quant
