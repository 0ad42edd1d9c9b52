import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.config.hub_ref import HubRef
from llmserve.errors import ModelFileError
from llmserve.hub.quants import RepoFile, Weights, choose, group, quant_of

REPO = HubRef("owner/repo")


def models(sizes: dict[str, int]) -> tuple[Weights, ...]:
    """One single-file model of each quantization and size."""
    return group(RepoFile(f"M-{quant}.gguf", size) for quant, size in sizes.items())


def names(paths: list[str]) -> list[tuple[str | None, int]]:
    return [(one.quant, len(one.files)) for one in group(RepoFile(path, 1) for path in paths)]


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("Model-Q4_K_M", "Q4_K_M"),
        ("model.q4_k_m", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q5_0", "Q5_0"),
        ("Model-IQ4_XS", "IQ4_XS"),
        ("Model.i1-IQ2_XXS", "IQ2_XXS"),
        ("Model-UD-Q4_K_XL", "UD-Q4_K_XL"),
        ("Model-TQ1_0", "TQ1_0"),
        ("Model-Q4_0_4_4", "Q4_0_4_4"),
        ("Model_Q8_0", "Q8_0"),
        ("Q4_K_M/Model", "Q4_K_M"),
        ("Q4_K_M/Model-Q5_K_M", "Q5_K_M"),
        ("model-bf16", "BF16"),
        ("ggml-model-f16", "F16"),
        ("gpt-oss-20b-MXFP4", "MXFP4"),
        ("Qwen3-4B", None),
        ("model", None),
    ],
)
def test_quant_of(stem: str, quant: str | None) -> None:
    assert quant_of(stem) == quant


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("Q4_K_M", 4), ("UD-IQ3_XXS", 3), ("BF16", 16), ("F32", 32), ("MXFP4", 4), (None, None)],
)
def test_bits(quant: str | None, bits: int | None) -> None:
    assert Weights(quant, (RepoFile("x.gguf", 1),), 1).bits == bits


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "M-Q4_0.safetensors",
        "mmproj-F16.gguf",
        "sub/mmproj-model-f16.gguf",
        "model-mmproj-q8_0.gguf",
        "imatrix.gguf",
        "imatrix_unsloth.gguf",
        "mtp-M-Q8_0.gguf",
    ],
)
def test_what_is_no_model(path: str) -> None:
    assert group([RepoFile(path, 1)]) == ()


class TestGroup:
    def test_the_parts_of_a_split_model_belong_together(self) -> None:
        paths = [f"Q4_K_M/M-Q4_K_M-0000{i}-of-00003.gguf" for i in (2, 3, 1)]
        (one,) = group(RepoFile(path, 10) for path in paths)
        assert one.first.path.endswith("-00001-of-00003.gguf")
        assert [file.path for file in one.files] == sorted(paths)
        assert (one.num_parts, one.size_bytes, one.is_complete) == (3, 30, True)

    def test_a_missing_part_is_noticed(self) -> None:
        (one,) = group([RepoFile("M-00001-of-00002.gguf", 10)])
        assert not one.is_complete
        with pytest.raises(ModelFileError, match="only 1 of its 2 parts"):
            choose(REPO, [one])

    def test_the_same_name_in_two_directories_is_two_models(self) -> None:
        assert names(["Q4_0/M.gguf", "Q8_0/M.gguf"]) == [("Q4_0", 1), ("Q8_0", 1)]

    @given(st.permutations(range(1, 6)), st.permutations(range(1, 4)))
    def test_the_order_of_the_listing_does_not_matter(self, a: list[int], b: list[int]) -> None:
        paths = [f"A-Q4_0-{i:05}-of-00005.gguf" for i in a]
        paths += [f"B-Q8_0-{i:05}-of-00003.gguf" for i in b]
        expected = group(RepoFile(path, 1) for path in sorted(paths))
        assert group(RepoFile(path, 1) for path in paths) == expected


class TestChoose:
    @pytest.mark.parametrize("wanted", ["Q8_0", "q8_0"])
    def test_by_quantization_in_any_case(self, wanted: str) -> None:
        chosen = choose(HubRef("o/r", quant=wanted), models({"Q4_K_M": 4, "Q8_0": 8}))
        assert chosen.quant == "Q8_0"

    def test_the_exact_quantization_wins_over_the_one_with_a_prefix(self) -> None:
        both = group([RepoFile("M-Q4_K_XL.gguf", 1), RepoFile("M-UD-Q4_K_XL.gguf", 1)])
        ref = HubRef("o/r", quant="Q4_K_XL")
        assert choose(ref, both).quant == "Q4_K_XL"
        assert choose(ref, [one for one in both if one.quant != "Q4_K_XL"]).quant == "UD-Q4_K_XL"

    @pytest.mark.parametrize(
        ("sizes", "quant"),
        [
            ({"Q2_K": 2, "Q4_K_M": 5, "IQ4_XS": 4}, "Q4_K_M"),
            ({"Q2_K": 2, "Q3_K_L": 3, "IQ4_XS": 4, "Q8_0": 8}, "IQ4_XS"),
            ({"BF16": 16, "Q8_0": 8}, "Q8_0"),
            ({"Q2_K": 2}, "Q2_K"),
            ({"UD-Q4_K_M": 4, "Q8_0": 8}, "UD-Q4_K_M"),
        ],
    )
    def test_by_default(self, sizes: dict[str, int], quant: str) -> None:
        assert choose(REPO, models(sizes)).quant == quant

    def test_by_file_and_by_any_part_of_it(self) -> None:
        split = group(RepoFile(f"M-Q4_0-0000{i}-of-00002.gguf", 1) for i in (1, 2))
        ref = HubRef("o/r", file="M-Q4_0-00002-of-00002.gguf")
        assert choose(ref, split).first.path == "M-Q4_0-00001-of-00002.gguf"

    @pytest.mark.parametrize(
        ("ref", "says"),
        [
            (HubRef("o/r", quant="Q5_0"), "no quantization Q5_0; it has Q2_K (2.0 kB), Q3_K_M"),
            (HubRef("o/r", file="x.gguf"), "no file 'x.gguf'; it has Q2_K"),
            (HubRef("o/r"), "no quantization Q4_K_M; it has Q2_K"),
        ],
    )
    def test_what_is_not_there_is_answered_with_what_is(self, ref: HubRef, says: str) -> None:
        with pytest.raises(ModelFileError) as caught:
            choose(ref, models({"Q2_K": 2000, "Q3_K_M": 3000}))
        assert says in caught.value.message

    def test_no_guess_between_two_models_of_one_quantization(self) -> None:
        two = group([RepoFile("base-Q4_K_M.gguf", 1), RepoFile("chat-Q4_K_M.gguf", 1)])
        with pytest.raises(ModelFileError, match=r"base-Q4_K_M\.gguf, chat-Q4_K_M\.gguf"):
            choose(REPO, two)

    def test_a_repository_without_a_model(self) -> None:
        with pytest.raises(ModelFileError, match=r"o/r has no \.gguf model"):
            choose(HubRef("o/r"), [])
