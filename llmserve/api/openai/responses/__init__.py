"""POST /v1/responses, without a memory: nothing is stored, so the input is the whole history."""
