"""A submitted request -> a sequence that can be scheduled."""

from llmserve.core import Request
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
    info, request = runtime.info, submit.request
    reading = submit.reading
    return Sequence(
        id=submit.id,
        arrival=arrival,
        request=request,
        tokens=list(submit.tokens),
        max_len=submit.max_len,
        sampler=Sampler(
            request.sampling,
            seed=submit.seed,
            vocab_size=info.vocab_size,
            eog_tokens=info.eog_tokens,
        ),
        text=Reader(reading, request.stop) if reading else TextStream(request.stop),
        accepted_s=submit.accepted_s,
        logprobs=_logprob_stream(request),
        prompt_scores=_prompt_scores(submit, runtime),
        matcher=compiler.take(submit.id) if submit.constraint else None,
        reading=reading,
        drafter=Drafter() if drafts and _can_draft(submit) else None,
    )


def _can_draft(submit: Submit) -> bool:
    """Masks and the rows of prompts are made for one token at a time."""
    request = submit.request
    return not (request.deterministic or submit.constraint or request.prompt_logprobs)


def _logprob_stream(request: Request) -> LogprobStream | None:
    if request.num_logprobs is None:
        return None
    return LogprobStream(request.num_logprobs, lists_end=request.prompt_logprobs)


def _prompt_scores(submit: Submit, runtime: Runtime) -> PromptScores | None:
    request = submit.request
    if not request.prompt_logprobs:
        return None
    assert request.num_logprobs is not None, "checked by the engine"
    return PromptScores(
        submit.tokens, request.num_logprobs, lambda token: runtime.detokenize([token])
    )
