"""`python -m engine`: the engine by itself, without a gateway."""

import argparse
import queue
import secrets
import sys
import time
from collections.abc import Sequence

from engine.errors import EngineError
from engine.load import LoadedModel, LoadOptions, load, model_directory
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason

USAGE = """\
python -m engine generate --model demo --chat --prompt "What is the capital of Norway?"
python -m engine bench --help
python -m engine kernels build --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. The status: 0 done, 1 a model or request is wrong, 2 the command line is, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:
        from engine import bench

        return bench.main(arguments[1:])
    if arguments[:1] == ["kernels"]:
        from engine.kernels import command

        return command.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return _generate(options)
    except EngineError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has left; nothing more to say
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine", epilog=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="generate | bench | kernels")
    commands.add_parser("bench", help="measure tokens/s beside transformers", add_help=False)
    commands.add_parser("kernels", help="compile the CUDA kernels beforehand", add_help=False)
    generate = commands.add_parser("generate", help="answer one prompt, streamed to stdout")
    generate.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face directory, or demo")
    generate.add_argument("--prompt", required=True, help="the text; - reads it from stdin")
    generate.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    generate.add_argument("--system", metavar="TEXT", help="a system message before it (implies --chat)")
    generate.add_argument("--max-tokens", type=int, metavar="N", help="default: what the context leaves")
    generate.add_argument("--min-tokens", type=int, default=0, metavar="N")
    generate.add_argument("--temperature", type=float, help="0 is greedy; default: the model's own")
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--min-p", type=float)
    generate.add_argument("--repetition-penalty", type=float)
    generate.add_argument("--seed", type=int, help="the same seed gives the same answer")
    generate.add_argument("--n", type=int, default=1, help="how many answers; several are printed one behind the other")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated"
    )
    generate.add_argument("--ignore-eos", action="store_true", help="go on behind the model's own end")
    generate.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    generate.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: the cores")
    generate.add_argument("--max-model-len", type=int, metavar="N", help="context in tokens")
    return parser


def _generate(options: argparse.Namespace) -> int:
    given = LoadOptions(dtype=options.dtype, threads=options.threads, max_model_len=options.max_model_len)
    model = load(model_directory(options.model), given)
    prompt_ids = _prompt(model, options)
    request = GenerateRequest("cli", tuple(prompt_ids), _params(model, options, len(prompt_ids)), n=options.n)
    delivered: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    with model.open_engine(delivered.put) as engine:
        started = time.monotonic()
        engine.submit(request)
        ends = _print(delivered, options.n)
        seconds = time.monotonic() - started
    return _report(ends, seconds)


def _prompt(model: LoadedModel, options: argparse.Namespace) -> list[int]:
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not options.chat and options.system is None:
        return model.tokenizer.encode(text)
    if model.template is None:
        raise EngineError("the model has no chat template: ask without --chat")
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    return model.tokenizer.encode_pieces(model.template.render([*system, {"role": "user", "content": text}]))


def _params(model: LoadedModel, options: argparse.Namespace, num_prompt: int) -> SamplingParams:
    defaults = model.defaults
    room = max(model.runner.max_model_len - num_prompt, 1)

    def chosen(value: float | None, default: float) -> float:
        return default if value is None else value

    return SamplingParams(
        max_tokens=room if options.max_tokens is None else options.max_tokens,
        min_tokens=options.min_tokens,
        temperature=chosen(options.temperature, defaults.temperature),
        top_p=chosen(options.top_p, defaults.top_p),
        top_k=defaults.top_k if options.top_k is None else options.top_k,
        min_p=chosen(options.min_p, defaults.min_p),
        repetition_penalty=chosen(options.repetition_penalty, defaults.repetition_penalty),
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        stop=tuple(options.stop),
        stop_token_ids=frozenset() if options.ignore_eos else model.tokenizer.stop_ids,
    )


def _print(delivered: "queue.SimpleQueue[list[Output]]", n: int) -> list[Output]:
    """Print what comes until every choice has ended, a single one as it streams; gives the last outputs."""
    texts = [""] * n
    ends: list[Output] = []
    while len(ends) < n:
        for output in delivered.get():
            if n == 1:
                print(output.text, end="", flush=True)
            texts[output.index] += output.text
            if output.finish is not None:
                ends.append(output)
    if n == 1:
        print()
    else:
        for index, text in enumerate(texts):
            print(f"--- {index + 1} of {n}\n{text}")
    return ends


def _report(ends: Sequence[Output], seconds: float) -> int:
    """Say on stderr what it took; the exit status."""
    failed = [end for end in ends if end.finish in (FinishReason.ERROR, FinishReason.ABORT)]
    for end in failed:
        print(f"engine: {end.error or end.finish}", file=sys.stderr)
    generated = sum(end.num_generated for end in ends)
    finishes = ", ".join(str(end.finish) for end in ends)
    print(
        f"{ends[0].num_prompt} prompt tokens, {generated} generated in {seconds:.2f} s "
        f"({generated / max(seconds, 1e-9):.0f} tokens/s), ended by: {finishes}",
        file=sys.stderr,
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
