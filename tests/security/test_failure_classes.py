"""Every class of failure that servers like this one have had, and the test that it has here.

Each of these tests fails without what prevents the failure.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLASSES = {
    "code in chat templates, endless loops (CVE-2024-34359, CVE-2026-5760)": (
        "security/test_templates.py::test_a_template_executes_nothing_and_ends"
    ),
    "overflows in the parser of GGUF (CVE-2025-49847, CVE-2026-7482)": (
        "fuzz/test_mutated_ggufs.py::test_a_server_answers_for_every_file_and_stays"
    ),
    "bombs of grammars and schemas (CVE-2025-48944)": (
        "security/test_requests.py::test_grammar_bombs"
    ),
    "native aborts while an answer is computed (llama.cpp #12597)": (
        "e2e/test_faults.py::test_who_runs_is_told_and_who_waits_is_answered"
    ),
    "integers out of range (CVE-2026-21869, CVE-2026-34756)": (
        "security/test_requests.py::test_integers_out_of_range"
    ),
    "oversize bodies (CVE-2025-48956)": (
        "security/test_memory.py::test_a_body_of_1_gb_is_cut_off_early"
    ),
    "path traversal in names (CVE-2024-37032)": (
        "security/test_requests.py::test_path_traversal_in_names"
    ),
    "downloads led into the local network (CVE-2026-5530)": (
        "hub/test_client.py::TestNetwork::test_a_redirect_away_from_the_hub_is_refused"
    ),
    "DNS rebinding (CVE-2024-28224)": (
        "api/http/test_origins.py::test_a_foreign_host_gets_403_with_the_name_and_the_key_to_set"
    ),
    "open exposure (175,000 hosts found open)": (
        "e2e/test_keys.py::test_no_open_server_by_accident"
    ),
    "timing of the prefix cache (CVE-2025-46570)": (
        "e2e/test_keys.py::test_no_other_key_sees_what_is_cached"
    ),
    "one overflow fails everyone (llama-server)": (
        "security/test_requests.py::test_long_outputs_in_little_room_all_finish"
    ),
    "a load that would exhaust memory (Ollama #16830)": (
        "security/test_memory.py"
        "::test_a_load_that_would_exhaust_memory_is_refused_with_both_figures"
    ),
    "poisoned dependencies (LiteLLM 1.82.7)": (
        "deploy/test_locks.py::test_setup_installs_with_hashes_only"
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_class_has_its_test(name: str) -> None:
    path, *names = CLASSES[name].split("::")
    body = ast.parse((TESTS / path).read_text()).body
    for part in names:
        found = [node for node in body if getattr(node, "name", None) == part]
        assert len(found) == 1, f"{CLASSES[name]}: there is no {part}"
        assert isinstance(found[0], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        assert "skip" not in " ".join(map(ast.unparse, found[0].decorator_list))
        body = found[0].body
    assert names[-1].startswith("test_")


def test_no_test_is_of_two_classes() -> None:
    assert len(set(CLASSES.values())) == len(CLASSES) == 14
