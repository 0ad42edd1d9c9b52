"""Chat templates are programs of whoever made a GGUF: they compute but text, and not for long."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ServerProcess, server_process
from tests.tiny_models import write_llama

RUNS = "open('{file}', 'w').write('x')"
GLOBALS = "{{{{ lipsum.__globals__['__builtins__']['exec'](\"{runs}\") }}}}"
TEMPLATES = {
    "globals": GLOBALS,
    "subclasses": (
        "{{% for c in ''.__class__.__mro__[1].__subclasses__() if c.__name__ == '_wrap_close' %}}"
        "{{{{ c.__init__.__globals__['system']('touch {file}') }}}}{{% endfor %}}"
    ),
    "namespace": "{{{{ cycler.__init__.__globals__.os.popen('touch {file}').read() }}}}",
    "format": "{{{{ '{{0.__class__.__init__.__globals__}}'.format(messages) }}}}",
    "endless": "{{% for i in range(99999) %}}" * 2 + "{{% endfor %}}" * 2,
    "endless-output": "{{% for i in range(99999) %}}{{{{ 'x' * 99999 }}}}{{% endfor %}}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    tables = []
    for name, template in {"good": "{{{{ messages[0].content }}}}", **TEMPLATES}.items():
        file = folder / f"{name}.executed"
        text = template.format(file=file, runs=RUNS.format(file=file))
        write_llama(folder / f"{name}.gguf", chat_template=text)
        tables.append(f'[models.{name}]\npath = "{name}.gguf"\ncontext_length = 256\nthreads = 1\n')
    config = folder / "models.toml"
    config.write_text('[server]\nisolation = "thread"\n' + "\n".join(tables))
    with server_process(config) as process:
        yield process


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_executes_nothing_and_ends(
    server: ServerProcess, folder: Path, name: str
) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400, answer.text
    assert "template" in answer.json()["error"]["message"]
    assert not (folder / f"{name}.executed").exists()
    # The file is not to blame for the rest of the model, nor its neighbours for the file.
    completion = {"model": name, "prompt": "a", "max_tokens": 1}
    assert server.post("/v1/completions", completion).status_code == 200
    assert server.post("/v1/chat/completions", {**body, "model": "good"}).status_code == 200
