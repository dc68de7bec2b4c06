"""Write the parts of the documentation that the code knows better: whole pages and marked blocks.

    python docs/generate.py              policies, tasks, models, cli, tables and included files
    python docs/generate.py --outputs    also run the examples and fill in what they print

In any page, README.md included:

    <!-- include: examples/01_constant_cache.py -->   the code block after it is that file
    <!-- output: examples/01_constant_cache.py -->    the code block after it is what it prints
    <!-- table: steps -->  ...  <!-- end -->          a table of worked_example.py
    <!-- table: 1m/headline -->  ...  <!-- end -->    a table of an evaluation (result_tables.py)
    <!-- table: accelerator/claim -->  ...  <!-- end -->    one of accelerator_results.py
    <!-- table: rtl/costs -->  ...  <!-- end -->           one of rtl_results.py
    <!-- table: bench/caps -->  ...  <!-- end -->          a run of bench_results.py

tests/unit/test_docs.py and tests/examples fail when a page is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import accelerator_results
import bench_results
import result_tables
import rtl_results
import typer.main
import worked_example

from kvmmu.cli import app
from kvmmu.engine.families import FAMILIES as ENGINE
from kvmmu.evals.tasks.base import TASKS
from kvmmu.hf.families import FAMILIES
from kvmmu.policies.base import POLICIES, Policy

DOCS = Path(__file__).resolve().parent
REPO = DOCS.parent
TABLES: dict[str, Callable[[], str]] = {
    "steps": worked_example.steps_table,
    "chunk": worked_example.chunk_table,
}
GENERATED = "<!-- Made by docs/generate.py; change the code, not this page. -->"

_BLOCK = r"(<!-- {kind}: (\S+) -->\n+```\w*\n)(.*?)(\n```)"
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)((?<=\n)<!-- end -->)", re.DOTALL)

_NEEDS = {
    "mass": "the attention that each slot got, summed over queries",
    "max": "the largest attention that a slot got",
    "newest": "the attention of the newest query",
    "last": "the attention of the last queries",
    "last_sq": "its squares",
    "k": "the keys held",
    "v": "the values held",
    "protected": "which slots are protected",
}


# Policies -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Text:
    """What a policy's file says at its top."""

    paper: str
    rule: str
    parameters: str
    differs: str


def _names() -> list[str]:
    """List the policies of the package itself."""
    home = "kvmmu.policies."
    return [n for n in POLICIES.names() if POLICIES.get(n).__module__.startswith(home)]


def _text(made: type[Policy]) -> _Text:
    """Take a policy file's opening apart. Raises ValueError if a part is missing."""
    doc = sys.modules[made.__module__].__doc__ or ""
    parts = re.fullmatch(
        r"(.*?)\n\nRule: (.*?)\nParameters:(.*?)\nDiffers from the paper: (.*)", doc, re.DOTALL
    )
    if parts is None:
        raise ValueError(
            f"{made.__module__} must open with the paper, 'Rule:', 'Parameters:' and "
            "'Differs from the paper:'"
        )
    paper, rule, parameters, differs = parts.groups()
    return _Text(_flow(paper), _sentence(rule), _parameters(parameters), _sentence(differs))


def _flow(text: str) -> str:
    """Undo line breaks."""
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """Undo line breaks and begin with a capital, or with a setting as code."""
    words = _flow(text)
    setting = re.match(r"\w+ = [\w.\"]*\w\"?", words)
    if setting:
        return f"`{setting[0]}`{words[setting.end() :]}"
    return words[:1].upper() + words[1:]


def _parameters(text: str) -> str:
    """Turn "name = default   meaning" lines into a list; free text stays as it is."""
    head, _, rest = text.partition("\n")
    items: list[str] = []
    for line in rest.splitlines():
        found = re.match(r" {4}(\w+ = \S+) +(.*)", line)
        if found:
            items.append(f"- `{found[1]}`: {found[2]}")
        elif items:
            items[-1] += " " + line.strip()
        else:
            head += " " + line.strip()
    return "\n".join(filter(None, [_sentence(head), *items]))


def _signature(policy: Policy) -> str:
    """Write the call that makes a policy with its defaults."""
    settings = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(policy))
    return f"kvmmu.{type(policy).__name__}({settings})"


def _policy_section(name: str) -> str:
    """Describe one policy."""
    made = POLICIES.get(name)
    policy, text = made(), _text(made)
    needs = "; ".join(f"{_NEEDS[n]} (`{n}`)" for n in sorted(policy.needs)) or "nothing"
    lines = [
        f"## {name}",
        f"{text.paper}",
        f"**Rule.** {text.rule}",
        f"**Call.** `{_signature(policy)}`",
        f"**Parameters.** {text.parameters}"
        if not text.parameters.startswith("-")
        else f"**Parameters.**\n\n{text.parameters}",
        f"**Kind.** {policy.kind}. **Needs** {needs}.",
        f"**Differs from the paper.** {text.differs}",
    ]
    return "\n\n".join(lines)


def policies_page() -> str:
    """Write policies.md from the registry."""
    rows = []
    for name in _names():
        policy = POLICIES.get(name)()
        needs = ", ".join(f"`{n}`" for n in sorted(policy.needs)) or "-"
        rows.append(f"| [{name}](#{name}) | {policy.kind} | {needs} | {policy.ops_per_slot} |")
    intro = """
        # Policies: who leaves

        A policy ranks the tokens of one layer's cache. Everything else is the KV-MMU's and is the
        same under every policy: empty slots are filled first, sinks and window never leave, ties
        go to the lowest slot, and the newest token is always held.

        A `step` policy ranks at each new token. A `selector` chooses once, at the end of the
        prompt, and then hands over to a step policy. *Needs* says what the KV-MMU must hand over;
        *operations* are additions, multiplications and comparisons per slot and step, as the
        accelerator model counts them.

        Every policy takes the same settings of the cache, given to `SlotCache`:

        | setting | default | meaning |
        |---|---|---|
        | `num_sinks` | 4 | first real tokens of a row, never evicted |
        | `window` | max(1, C // 8) | most recent tokens, never evicted; counts the newest |
        | `granularity` | `"head"` | one victim per KV head, or one per `"layer"` |
        | `positions` | `"original"` | keys keep their place in the text; or `"in_cache"` |
        | `chunk_size` | min(256, C) | T, tokens attended to at once in a prefill |

        Only `rce` has a hardware form: `RCE(fixed_point=True)` equals
        `kvmmu.fixed_point` bit for bit. The others exist in software only.
        """
    table = "\n".join(["| name | kind | needs | operations |", "|---|---|---|---|", *rows])
    own = """
        ## Your own

        A policy is one frozen dataclass; [examples/02_own_policy.py](../examples/02_own_policy.py)
        is a whole one. Register it with `kvmmu.register("name")`, or name it in the entry points
        of your package, group `kvmmu.policies`. The contract is in `kvmmu.policies.base`.
        """
    sections = [_policy_section(name) for name in _names()]
    return _page(intro, table, *sections, own)


# Tasks ----------------------------------------------------------------------------------------


def tasks_page() -> str:
    """Write tasks.md from the registry."""
    intro = """
        # Tasks: what a memory is asked for

        Every task is generated, or cut from a shipped text; none needs a network. A task draws a
        context and questions about it. Contexts are read in chunks of at most max(16, C // 4)
        tokens; everything after the context is fed token by token, so that no answer comes from
        an attention that saw more than the cache held.

        | mode | what the cache may know when it chooses |
        |---|---|
        | `late` | nothing: the questions come after the context, one turn after the other |
        | `shared` | nothing: each question goes to its own copy of the context's cache |
        | `seen` | the question: it stands at the end of the context too |
        | `online` | the questions stand in the text, or are asked while the model writes |

        `late` and `shared` are SCBench's two ways of using a context again (several turns, several
        requests). A task enters a table only where the full cache scores at least 0.8 (chance +
        0.5, if that is less, where chance is 0.15 or more); elsewhere it is listed as not
        measurable with that model.
        *Kept* = (policy - chance) / (full cache - chance), where chance is what one scores who
        knows the form of the answer and copies something of that form from the text at random: a
        wrong record's digits, another place, any words of the list.

        Keys are words that the shipped models were not trained on as keys (held out), except
        where the answer holds keys (`niah_multiquery`, `variable_tracking`, `recite` and the word
        counts): there they are training keys, since those models write held-out keys badly under
        any cache. `shared` covers retrieval and variable tracking, in which all requests have one
        layout; its N counts every request of a context, so one request alone sees a cache that
        is slightly larger than N over the compression.
        """
    rows = ["| task | asks for | capability | modes | chance at 1,024 |", "|---" * 5 + "|"]
    sections = []
    for name in TASKS.names():
        made = TASKS.get(name)
        if not made.__module__.startswith("kvmmu.evals.tasks."):
            continue
        task = made()
        modes = ", ".join(f"`{mode}`" for mode in made.modes)
        chance = f"{task.chance(1024):.2g}" if task.chance(1024) else "0"
        rows.append(
            f"| [{name}](#{name}) | {made.question} | {made.capability} | {modes} | {chance} |"
        )
        doc = textwrap.dedent(sys.modules[made.__module__].__doc__ or "").strip()
        head, _, body = doc.partition("\n")
        parts = [f"## {name}", str(made.__doc__), head]
        if body.strip():
            parts.append(f"```\n{body.strip(chr(10))}\n```")
        settings = ", ".join(f"{f.name}={f.default!r}" for f in dataclasses.fields(task))
        if settings:
            parts.append(f"Parameters: `{settings}`.")
        sections.append("\n\n".join(parts))
    return _page(intro, "\n".join(rows), *sections)


# Models ---------------------------------------------------------------------------------------


def models_page() -> str:
    """Write models.md from the table of families."""
    intro = """
        # Supported models

        kvmmu works with decoder-only models of transformers that use its attention interface. A
        model that cannot be done exactly is refused with one line that says why, when the cache
        is bound or when `kvmmu.enabled(model)` is entered; nothing is approximated in silence.

        ## Right, by test

        For each of these a model with random weights is compared with the full cache: same token
        ids and logits within 1e-5 (fp32) through `generate()`, for a left-padded batch, with the
        prompt whole, in chunks and token by token. *in cache* tells whether
        `positions="in_cache"`, for texts without end, is right too; *engine* whether the
        [engine](engine.md#models), which has a forward of its own, takes the family as well.
        """
    exact = [
        f"| `{f.model_type}` | {'yes' if f.model_type in ENGINE else 'refused'} "
        f"| {'yes' if f.in_cache else 'refused'} | {f.note} |"
        for f in FAMILIES
        if f.status == "exact"
    ]
    refused = [f"| `{f.model_type}` | {f.note} |" for f in FAMILIES if f.status == "refused"]
    others = """
        ## Others

        A family that is in neither table is not refused for its name. It runs if its
        configuration passes the checks: attention interface, causal, one device, full or
        sliding-window layers, keys and values of one width. While it runs, every layer must hand
        over its own keys, and an attention argument that kvmmu does not know is an error, not
        ignored. No test compares such a family with the full cache, so compare once yourself,
        with as many slots as tokens: the ids must be equal.

        ```python
        how = {"max_new_tokens": 50, "do_sample": False}
        full = model.generate(**inputs, **how)
        cache = kvmmu.SlotCache.for_model(model, num_slots=full.shape[1], batch_size=len(full))
        with kvmmu.enabled(model):
            ours = model.generate(**inputs, past_key_values=cache, **how)
        assert full.equal(ours)
        ```

        ## Batches whose rows end

        Inside `generate()`, a row that has ended is fed pad tokens until the others have; a
        `SlotCache` does not keep them. It knows the end and the pad from
        `model.generation_config`. If you give `generate()` others, give them to the cache too:
        `SlotCache(..., eos_token_id=, pad_token_id=)`. Where one token is both end and pad, two
        in a row in a prompt that is fed token by token look like an end, and are refused when
        the row goes on.

        ## Refused for every model

        - Training, or any gradient through the cache.
        - Padding on the right or in the middle; set `tokenizer.padding_side = "left"`.
        - `output_attentions`: the attention weights of a whole context are never formed.
        - `crop`, and with it assisted decoding: an evicted token does not come back.
        - Text past the model's trained length with `positions="original"`, unless
          `allow_extrapolation=True`; with learned positions always.
        - Attention implementations other than `"sdpa"` and `"eager"`.
        - Layers spread over several devices.
        """
    return _page(
        intro,
        "\n".join(
            [
                "| model type | engine | in cache | what the tests cover |",
                "|---|---|---|---|",
                *exact,
            ]
        ),
        "## Refused, by test",
        "\n".join(["| model type | reason |", "|---|---|", *refused]),
        others,
    )


# Command line ---------------------------------------------------------------------------------


def cli_page() -> str:
    """Write cli.md from the commands themselves."""
    root: Any = typer.main.get_command(app)
    intro = """
        # The command line

        Results go to stdout, messages and progress to stderr. `--json` prints one JSON object,
        last on stdout. Exit code 0: done; 2: bad input, said in one line; 1: a fault of ours;
        130: interrupted.
        """
    return _page(intro, *_commands(root, app, ""))


def _commands(group: Any, made: Any, prefix: str) -> Iterator[str]:
    """Describe every command of a group, those of groups within it too."""
    within = {one.name: one.typer_instance for one in made.registered_groups}
    for name, command in group.commands.items():
        if name in within:
            yield from _commands(command, within[name], f"{prefix}{name} ")
        else:
            yield _command(f"{prefix}{name}", command, _kinds(made, name))


def _command(name: str, command: Any, kinds: dict[str, type]) -> str:
    """Describe one command."""
    epilog = command.epilog or ""
    example = epilog.removeprefix("Example: ")
    lines = [f"## kvmmu {name}", _flow(command.help or "")]
    if example:
        lines.append(f"```\n{_only_command(example)}\n```")
    options = [_option(p, kinds[p.name]) for p in command.params if p.name in kinds]
    if options:
        lines.append("\n".join(["| argument | default | meaning |", "|---|---|---|", *options]))
    return "\n\n".join(lines)


def _only_command(example: str) -> str:
    """Cut a remark in brackets off an example."""
    return re.sub(r" \(.*\)$", "", example)


def _kinds(group: Any, name: str) -> dict[str, type]:
    """Read the plain type of each argument from the command's signature."""
    callbacks = [c.callback for c in group.registered_commands]
    names = [c.name or c.callback.__name__ for c in group.registered_commands]
    made = callbacks[names.index(name)]
    kinds = {}
    for key, hint in get_type_hints(made).items():
        arms = [arm for arm in get_args(hint) or (hint,) if arm is not type(None)]
        if arms:  # the return type is None alone
            kinds[key] = arms[0]
    return kinds


def _option(param: Any, kind: type) -> str:
    """Write one row of a command's table."""
    if param.param_type_name == "argument":
        names = param.name.upper()
    else:
        words = {bool: "", int: " INTEGER", float: " NUMBER", Path: " PATH"}
        names = ", ".join([*param.opts, *param.secondary_opts]) + words.get(kind, " TEXT")
    default = param.default
    shown = (
        "required"
        if param.required
        else ""
        if default is None or default is False
        else f"`{default}`"
    )
    meaning = _flow(param.help or "").replace("|", "\\|")
    return f"| `{names}` | {shown} | {meaning} |"


# Pages and blocks -----------------------------------------------------------------------------


def _page(*parts: str) -> str:
    """Join a page's parts; each may be indented."""
    bodies = [textwrap.dedent(part).strip() for part in parts]
    return "\n\n".join([GENERATED, *bodies]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "policies.md": policies_page,
    "tasks.md": tasks_page,
    "models.md": models_page,
    "cli.md": cli_page,
}


def snippet(path: Path) -> str:
    """Return an example's code without its docstring and its future import."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        is_doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not is_doc and not is_future:
            return "\n".join(text.splitlines()[node.lineno - 1 :])
    raise ValueError(f"{path} must hold code, got none")


def run_example(path: Path) -> str:
    """Run an example and return what it prints. Raises CalledProcessError if it fails."""
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def filled(text: str, *, outputs: Callable[[Path], str] | None = None) -> str:
    """Return a page with its marked blocks up to date; outputs stay unless asked for."""

    def put(made: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
        return lambda found: found[1] + made(found[2]) + found[4]

    text = re.sub(
        _BLOCK.format(kind="include"), put(lambda n: snippet(REPO / n)), text, flags=re.DOTALL
    )
    text = _TABLE.sub(put(lambda name: _table(name) + "\n"), text)
    if outputs is not None:
        run = outputs
        text = re.sub(
            _BLOCK.format(kind="output"), put(lambda n: run(REPO / n)), text, flags=re.DOTALL
        )
    return text


def _table(name: str) -> str:
    """Write a worked example's table, one of the accelerator's runs, or one of an evaluation."""
    if name in TABLES:
        return TABLES[name]()
    folder, _, rest = name.partition("/")
    if folder == "accelerator":
        return accelerator_results.TABLES[rest]()
    if folder == "bench":
        return bench_results.table(rest)
    if folder == "rtl":
        return rtl_results.TABLES[rest]()
    return result_tables.table(name)


def pages_with_blocks() -> list[Path]:
    """List the pages that people write: README.md and those of docs that are not generated."""
    pages = [p for p in sorted(DOCS.glob("*.md")) if p.name not in PAGES]
    readme = REPO / "README.md"
    return [readme, *pages] if readme.exists() else pages


def stale() -> list[str]:
    """Name the pages that differ from what this would write, outputs apart."""
    found = []
    for name, make in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != make():
            found.append(name)
    for path in pages_with_blocks():
        text = path.read_text(encoding="utf-8")
        if text != filled(text):
            found.append(path.name)
    return found


def main(arguments: list[str]) -> None:
    """Write every page."""
    outputs = run_example if "--outputs" in arguments else None
    for name, make in PAGES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
    for path in pages_with_blocks():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, outputs=outputs), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
