"""GET /docs: the manual that ships with the package, and the reference of the API beside it.

Whole without any other host. Knows no dialect and no gateway.
"""

from llmserve.api.docs.manual import docs, docs_example, docs_file
from llmserve.api.endpoint import Dialect

DOCS = Dialect((docs, docs_file, docs_example))
