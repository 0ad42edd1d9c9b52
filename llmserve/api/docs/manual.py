"""The pages of `llmserve/docs` as HTML, rendered when they are asked for.

Links between them are written as a forge wants them (`keys.md#limits`); here they lose their
ending. Addresses are relative, so that all works behind a proxy that adds a prefix.
"""

import asyncio
import functools
import html
import re
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

import llmserve
from llmserve.api.docs import reference
from llmserve.api.endpoint import endpoint
from llmserve.api.http.auth import Level

FOLDER = Path(llmserve.__file__).with_name("docs")
_POLICY = {"content-security-policy": "default-src 'self'; base-uri 'self'"}
_ASSETS = {".svg": "image/svg+xml", ".css": "text/css", ".py": "text/plain"}
_LINK = re.compile(r'href="(\w[\w/-]*)\.md(?=["#])')
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - llmserve</title>
{base}<link rel="stylesheet" href="style.css">
</head>
<body>
<nav><a href="index">llmserve {version}</a> <a href="api">API reference</a></nav>
<main>
{content}</main>
</body>
</html>
"""


@endpoint(
    "GET", "/docs", level=Level.OPEN, summary="The manual", tag="Operation", is_documented=False
)
async def docs(request: Request) -> Response:
    return await _page("index", base='<base href="docs/">\n')


@endpoint(
    "GET",
    "/docs/{name}",
    level=Level.OPEN,
    summary="A page of the manual, the API reference, or a file of either",
    tag="Operation",
    is_documented=False,
)
async def docs_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "api":
        return reference.page()
    if name in _pages():
        return await _page(name)
    return _asset(name) or await reference.file(name, request.scope)


@endpoint(
    "GET",
    "/docs/examples/{name}",
    level=Level.OPEN,
    summary="A program of the manual",
    tag="Operation",
    is_documented=False,
)
async def docs_example(request: Request) -> Response:
    found = _asset(f"examples/{request.path_params['name']}")
    if found is None:
        raise HTTPException(404)
    return found


@functools.cache
def _pages() -> frozenset[str]:
    """What is asked for is looked up, never a path that is opened."""
    return frozenset(file.stem for file in FOLDER.glob("*.md"))


@functools.cache
def _assets() -> frozenset[str]:
    files = (file for file in FOLDER.rglob("*") if file.suffix in _ASSETS)
    return frozenset(file.relative_to(FOLDER).as_posix() for file in files)


def _asset(name: str) -> Response | None:
    if name not in _assets():
        return None
    return FileResponse(FOLDER / name, media_type=_ASSETS[Path(name).suffix], headers=_POLICY)


async def _page(name: str, base: str = "") -> Response:
    if name not in _pages():
        raise HTTPException(404)
    return HTMLResponse(await asyncio.to_thread(_render, name, base), headers=_POLICY)


@functools.cache
def _render(name: str, base: str) -> str:
    # Few servers are ever asked, so what renders is imported then.
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin

    source = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    title = source.partition("\n")[0].removeprefix("# ")
    content = MarkdownIt("gfm-like", {"linkify": False, "html": False}).use(
        anchors_plugin, max_level=4
    )
    rendered = _LINK.sub(r'href="\1', content.render(source))
    return _PAGE.format(
        title=html.escape(title), base=base, version=llmserve.__version__, content=rendered
    )
