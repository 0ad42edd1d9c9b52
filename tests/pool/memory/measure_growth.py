"""Load a model, use all of its context, and print by how much the process grew.

    python -m tests.pool.memory.measure_growth MODEL NUM_CELLS

Runs in a process of its own, because memory that an earlier model freed would hide growth. Prints
one JSON object: `growth_bytes` (RSS) and `system_info`, which says what this build repacks.
"""

import ctypes
import json
import sys

import llama_cpp
import psutil

BATCH = 512
NUM_SEQUENCES = 16


def main() -> None:
    path, num_cells = sys.argv[1], int(sys.argv[2])
    llama_cpp.llama_backend_init()
    before = psutil.Process().memory_info().rss
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params()
    )
    assert model, "llama.cpp did not load the model"
    context = llama_cpp.llama_init_from_model(model, _params(num_cells))
    assert context, "llama.cpp did not create the context"
    _use_whole_context(context, num_cells)
    growth_bytes = psutil.Process().memory_info().rss - before
    system_info = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"growth_bytes": growth_bytes, "system_info": system_info}))


def _params(num_cells: int) -> llama_cpp.llama_context_params:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = num_cells
    params.n_batch = params.n_ubatch = BATCH
    params.n_seq_max = params.n_outputs_max = NUM_SEQUENCES
    params.kv_unified = True
    params.swa_full = False
    params.n_threads = params.n_threads_batch = 2
    return params


def _use_whole_context(context: object, num_cells: int) -> None:
    """Fill all cells but a batch's with copies of one prefix, then decode over all of them.

    Only a batch that sees every cell touches the whole attention mask and scratch space.
    """
    batch = min(BATCH, num_cells)
    num_prefixes = min(num_cells // batch - 1, NUM_SEQUENCES - 1)
    _decode(context, 0, batch)
    size = llama_cpp.llama_state_seq_get_size(context, 0)
    state = (ctypes.c_uint8 * size)()
    llama_cpp.llama_state_seq_get_data(context, state, size, 0)
    for sequence in range(1, num_prefixes):
        read = llama_cpp.llama_state_seq_set_data(context, state, size, sequence)
        assert read == size, (sequence, read, size)
    if num_prefixes:
        _decode(context, num_prefixes, batch)


def _decode(context: object, sequence: int, num_tokens: int) -> None:
    batch = llama_cpp.llama_batch_init(num_tokens, 0, 1)
    batch.n_tokens = num_tokens
    for i in range(num_tokens):
        batch.token[i] = 3 + i * 7 % 250
        batch.pos[i] = i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = i >= num_tokens - NUM_SEQUENCES
    code = llama_cpp.llama_decode(context, batch)
    assert code == 0, code
    llama_cpp.llama_batch_free(batch)


if __name__ == "__main__":
    main()
