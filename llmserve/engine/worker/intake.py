"""A submitted request -> a sequence that can be scheduled."""

from llmserve.engine.messages import Submit
from llmserve.engine.output.parser import Reader
from llmserve.engine.output.text import TextStream
from llmserve.engine.runtime import Runtime
from llmserve.engine.sampling.logprobs import LogprobStream, PromptScores
from llmserve.engine.sampling.sampler import Sampler
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.scheduler.speculation import Drafter
from llmserve.engine.structured.compiler import Compiler


def make_sequence(
    submit: Submit, arrival: int, runtime: Runtime, compiler: Compiler, *, drafts: bool
) -> Sequence:
    """`compiler` has prepared the constraint, if there is one; `drafts` where it may be guessed."""
    info = runtime.info
    return Sequence(
        id=submit.id,
        arrival=arrival,
        tokens=list(submit.tokens),
        max_len=submit.max_len,
        sampler=Sampler(
            submit.sampling,
            seed=submit.seed,
            vocab_size=info.vocab_size,
            eog_tokens=info.eog_tokens,
        ),
        text=Reader(submit.reading, submit.stop) if submit.reading else TextStream(submit.stop),
        accepted_s=submit.accepted_s,
        logprobs=_logprob_stream(submit),
        prompt_scores=_prompt_scores(submit, runtime),
        matcher=compiler.take(submit.id) if submit.constraint else None,
        reading=submit.reading,
        drafter=Drafter() if drafts and _can_draft(submit) else None,
        is_batch=submit.is_batch,
        deterministic=submit.deterministic,
        cache_prompt=submit.cache_prompt,
        namespace=submit.namespace,
    )


def _can_draft(submit: Submit) -> bool:
    """Masks and the rows of prompts are made for one token at a time."""
    return not (submit.deterministic or submit.constraint or submit.prompt_logprobs)


def _logprob_stream(submit: Submit) -> LogprobStream | None:
    if submit.num_logprobs is None:
        return None
    return LogprobStream(submit.num_logprobs, lists_end=submit.prompt_logprobs)


def _prompt_scores(submit: Submit, runtime: Runtime) -> PromptScores | None:
    if not submit.prompt_logprobs:
        return None
    assert submit.num_logprobs is not None, "checked by the engine"
    return PromptScores(
        submit.tokens, submit.num_logprobs, lambda token: runtime.detokenize([token])
    )
