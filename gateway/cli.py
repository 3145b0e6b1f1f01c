"""The command line: `penstock serve`, `check`, `explain`, `replay`, `keys`, `kernels`, `schema` and others."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__

if TYPE_CHECKING:
    from gateway.configuration.loading import Loaded

WRONG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    given_arguments = list(sys.argv[1:] if arguments is None else arguments)
    if given_arguments[:1] == ["kernels"]:
        return _become_engine(given_arguments)
    parser = argparse.ArgumentParser(prog="penstock", description="A sidecar LLM gateway with the engine inside.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve until SIGTERM")
    check = commands.add_parser("check", help="say what is wrong with a configuration, or that it would start")
    for command in (serve, check):
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="default: penstock.yaml of this folder, and without one the demo model on 127.0.0.1:8080",
        )
    check.add_argument("--no-secrets", action="store_true", help="do not ask for the secrets that the file refers to")
    explain = commands.add_parser("explain", help="tell what a running gateway would make of a request")
    explain.add_argument("file", metavar="FILE", help="the request's JSON body; - for stdin")
    explain.add_argument("--url", default="http://127.0.0.1:8080", help="the gateway; default: %(default)s")
    explain.add_argument("--key", metavar="env:NAME", help="the caller's key, by reference: env:NAME or file:/path")
    explain.add_argument("--json", action="store_true", help="print the answer as it came")
    replay = commands.add_parser("replay", help="tell what another policy would have made of a recorded access log")
    replay.add_argument("log", metavar="LOG", help="an access log; - for stdin")
    replay.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="FILE",
        help="a policy file or folder; several are one policy",
    )
    replay.add_argument("--json", action="store_true", help="print the report as JSON")
    keys = commands.add_parser("keys", help="make a key for the policy files")
    new = keys.add_subparsers(dest="keys_command", required=True, metavar="COMMAND").add_parser(
        "new", help="print a new key, once, and the line that the policy file keeps of it"
    )
    new.add_argument("id", metavar="ID", help="what the key is found by, such as web-1; unique in all policy files")
    new.add_argument("--config", type=Path, metavar="FILE", help="where `key_pepper` stands; default: penstock.yaml")
    commands.add_parser("schema", help="print the JSON Schema of policy files, for editors")
    settings = commands.add_parser("settings", help="print every setting with its meaning")
    settings.add_argument("--policies", action="store_true", help="those of policy files")
    commands.add_parser("kernels", help="compile the engine's CUDA kernels beforehand", add_help=False)
    commands.add_parser("version", help="print the version")
    given = parser.parse_args(given_arguments)
    match given.command:
        case "serve":
            return _serve(given.config)
        case "check":
            return _check(given.config, secrets=not given.no_secrets)
        case "explain":
            from gateway.dry_run.explain_command import explain as explained

            return explained(given.file, given.url, given.key, as_json=given.json)
        case "replay":
            from gateway.dry_run.replay_command import replay as replayed

            return replayed(given.log, given.policy, as_json=given.json)
        case "keys":
            return _new_key(given.id, given.config)
        case "schema":
            import json

            from policies.json_schema import json_schema

            print(json.dumps(json_schema(), indent=2))
        case "settings":
            from gateway.configuration.policy_reference import describe_policies
            from gateway.configuration.settings import describe

            print(describe_policies() if given.policies else describe(), end="")
        case "version":
            print(f"penstock {__version__}")
    return 0


def _load(path: Path | None, *, secrets: bool) -> "Loaded | None":
    """Load what is to run; tells what is wrong, and gives None."""
    from gateway.configuration.loading import FILE, demo, load
    from policies.document import DocumentError

    if path is None and not Path(FILE).exists():
        return demo()
    try:
        return load(path or Path(FILE), secrets=secrets)
    except DocumentError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"penstock: cannot read {path or FILE}: {error.strerror}", file=sys.stderr)
    return None


def _check(path: Path | None, *, secrets: bool) -> int:
    loaded = _load(path, secrets=secrets)
    if loaded is None:
        return WRONG
    config = loaded.config
    served = ", ".join(config.models)
    who = f"keys of {', '.join(config.keys)}" if config.keys else "no key, loopback only"
    if loaded.policy is not None:
        from gateway.configuration.policy_files import described

        who = f"policy {loaded.policy.version}, {described(loaded.policy)}"
        for doubt in loaded.policy.doubts:
            print(f"is this meant? {doubt}", file=sys.stderr)
    print(f"{loaded.file or 'built-in'}: would serve {served} on {config.listen.host}:{config.listen.port} ({who})")
    return 0


def _become_engine(arguments: Sequence[str]) -> int:
    """Go on as `python -m engine` with these arguments; comes back only where there is no engine.

    Another process image and not an import: the gateway's doors into the engine are for serving, and what compiles
    kernels has no use for a gateway. -P: a folder called engine where the caller stands is not meant.
    """
    from importlib.util import find_spec

    if find_spec("torch") is not None:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "engine", *arguments])
    print("penstock: kernels are the engine's: pip install 'penstock[cuda]'", file=sys.stderr)
    return WRONG


def _new_key(key_id: str, config: Path | None) -> int:
    """Print a key and what is kept of it: the key to stdout, where it can be taken up, all else beside it."""
    import os
    import secrets

    from gateway.configuration.config import Config
    from gateway.configuration.loading import FILE
    from policies.document import DocumentError
    from policies.key import kept, new_key
    from policies.reader import read

    path = config or Path(FILE)
    try:
        reference = read(path.read_text("utf-8"), str(path), Config).key_pepper if config or path.exists() else None
        pepper = None if reference is None else reference.resolve(os.environ)
        key = new_key(key_id, secrets.token_bytes)
    except OSError as error:
        print(f"penstock: cannot read {path}: {error.strerror}", file=sys.stderr)
        return WRONG
    except (DocumentError, ValueError) as error:
        print(error, file=sys.stderr)
        return WRONG
    print("The key; it is shown this once:", file=sys.stderr)
    print(key, flush=True)
    print("The line for its tenant's `keys` in the policy file:", file=sys.stderr)
    print(f'{key_id}: {{hash: "{kept(key, pepper)}"}}')
    return 0


def _serve(path: Path | None) -> int:
    from gateway.configuration.policy_memory import PolicyMemory
    from gateway.process import supervisor

    def with_memory(loaded: "Loaded") -> "Loaded":
        return loaded if loaded.policy is None else replace(loaded, memory=PolicyMemory())

    loaded = _load(path, secrets=True)
    if loaded is None:
        return supervisor.CANNOT_START
    loaded = with_memory(loaded)
    listen = loaded.config.listen
    try:
        listener = supervisor.listen(listen.host, listen.port)
    except OSError as error:
        supervisor.say(str(error))
        return WRONG

    def plan(loaded: "Loaded") -> supervisor.Plan:
        def worker(post: supervisor.Post) -> int:
            from gateway.process.worker import work

            return work(loaded, post)

        engines = any(model.engine is not None for model in loaded.config.models.values())
        return supervisor.Plan(worker, loaded.config.listen.drain_s, alone=engines)

    def renew() -> supervisor.Plan | None:
        again = _load(path if loaded.file is None else Path(loaded.file), secrets=True)
        if again is None:
            return None
        if (again.config.listen.host, again.config.listen.port) != (listen.host, listen.port):
            supervisor.say("listen.host and listen.port cannot change while the process runs")
            return None
        return plan(with_memory(again))

    return supervisor.Supervisor(listener, plan(loaded), renew).run()


if __name__ == "__main__":
    sys.exit(main())
