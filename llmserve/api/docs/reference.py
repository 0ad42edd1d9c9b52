"""GET /docs/api: GET /openapi.json for people, in Swagger UI.

Its files come from an installed package, and the page may ask no other host for anything: the
policy that it is sent with forbids that to the browser.
"""

import functools

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"
# Paths are relative, so that it works behind a proxy that adds a prefix.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>llmserve</title>
<link rel="icon" type="image/png" href="favicon-32x32.png">
<link rel="stylesheet" href="swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger-ui-bundle.js"></script>
<script src="start.js"></script>
</body>
</html>
"""
_SCRIPT = """SwaggerUIBundle({
  url: "../openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""


def page() -> Response:
    return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})


async def file(name: str, scope: Scope) -> Response:
    """A file of the page. Raises `HTTPException` for any other name."""
    if name == "start.js":
        return Response(_SCRIPT, media_type="text/javascript")
    if name not in FILES:
        raise HTTPException(404)
    return await _static_files().get_response(name, scope)


@functools.cache
def _static_files() -> StaticFiles:
    from swagger_ui_bundle import swagger_ui_path  # few servers are ever asked

    return StaticFiles(directory=swagger_ui_path)
