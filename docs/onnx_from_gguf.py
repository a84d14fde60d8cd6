"""Makes an ONNX model that Foundry Local runs out of a GGUF file: `python -m docs.onnx_from_gguf [--gguf FILE]`.

Without arguments it takes SmolLM2, which Small First knows, so that Foundry Local can be tried where its catalogue
cannot be reached. Needs the network for the tools only (PyTorch and others, 1.1 GB, which stay in an environment of
their own in the cache folder unless `--clean` is given), 3 GB of disk and 3 GB of memory.

    1  the tools            pip, with the versions below
    2  GGUF to PyTorch      every weight as a full number again: transformers, GgufConfig(dequantize=True)
    3  PyTorch to ONNX      onnxruntime_genai.models.builder -p int4 -e cpu
                            --extra_options algo_config=k_quant accuracy_level=4
    4  a question           the model must answer before its folder gets its name

Those flags were found by trying. Without `dequantize` the weights cannot be saved; the builder cannot read this GGUF
itself; its default way to 4 bits answers visibly worse, its 8 bits write nonsense.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from rag.errors import RagError, UserError
from rag.models import weights
from rag.settings import Settings

REQUIREMENTS = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "gguf==0.19.0",
    "onnx==1.23.2",
    "onnx-ir==1.1.0",
    "onnxruntime==1.31.0",
    "onnxruntime-genai==0.18.0",
)
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
SMALL = "smollm2-135m"
FOLDER = "smollm2-135m-instruct-generic-cpu-1"
"""As Foundry Local names its own: model, execution provider, device, version."""
NEEDED_BYTES = 3_000_000_000
BUILD = ("-p", "int4", "-e", "cpu", "--extra_options", "algo_config=k_quant", "accuracy_level=4")
QUESTION = "What is the capital of France?"
ANSWER_TOKENS = 40

TO_PYTORCH = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

gguf, folder = Path(sys.argv[1]), sys.argv[2]
here = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
tokenizer = AutoTokenizer.from_pretrained(**here)
if not tokenizer.chat_template:
    sys.exit("the file holds no chat template: it is no model to chat with")
AutoModelForCausalLM.from_pretrained(**here, quantization_config=GgufConfig(dequantize=True)).save_pretrained(folder)
tokenizer.save_pretrained(folder)
"""

ASK = """
import json, sys
import onnxruntime_genai as genai

folder, question, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = genai.Model(folder)
tokenizer = genai.Tokenizer(model)
messages = json.dumps([{"role": "user", "content": question}])
prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
limits = genai.GeneratorParams(model)
limits.set_search_options(max_length=len(prompt) + most, do_sample=False)
generator = genai.Generator(model, limits)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps(tokenizer.decode(generator.get_sequence(0)[len(prompt) :])))
"""

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


class ConversionError(RagError):
    """A step of the recipe failed; the rest of its output is in the log that it names."""


def default_folder(cache_dir: Path) -> Path:
    """Where the model of `python -m docs.onnx_from_gguf` stands."""
    return cache_dir / "onnx" / FOLDER


def has_tools(cache_dir: Path) -> bool:
    """Could a model be made without fetching anything but its GGUF?"""
    return _tools_are_whole(cache_dir / "onnx" / "tools")


def build(gguf: Path | None, out: Path | None, settings: Settings, *, clean: bool = False) -> Path:
    """The folder of the ONNX model, made if it is not there. Raises RagError, and leaves no half of it then."""
    home = settings.cache_dir / "onnx"
    if out is None:
        out = default_folder(settings.cache_dir)
        if gguf is not None:
            out = home / f"{re.sub(r'[^a-z0-9._-]+', '-', gguf.stem.lower())}-generic-cpu-1"
    if (out / "genai_config.json").is_file():
        return out
    if out.exists():
        raise UserError(f"{out} is there and holds no ONNX model. Remove it, or name another folder with --out.")
    if gguf is not None and not gguf.is_file():
        raise UserError(f"No file at {gguf}. Name a GGUF file, or none for {SMALL}.")
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        if (out / "genai_config.json").is_file():
            return out
        if (free := shutil.disk_usage(home).free) < NEEDED_BYTES:
            raise UserError(
                f"{home} has {free / 1e9:.1f} GB left and making a model needs {NEEDED_BYTES / 1e9:.0f}. Make room,"
                " or set RAG_CACHE_DIR to a folder on another disk."
            )
        _make(gguf or _pulled(settings), out, home, clean)
    return out


def _pulled(settings: Settings) -> Path:
    with console.status(f"{SMALL}: fetching"):
        return weights.pull(
            weights.find(SMALL),
            settings.cache_dir,
            weights_dir=settings.weights_dir,
            source=settings.weights_source,
            hub_url=settings.hub_url,
        )


def _make(gguf: Path, out: Path, home: Path, clean: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its last place, so that the renaming at the end is one step of the file system.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out.parent) as folder:
        work = Path(folder)
        log = home / "last.log"
        log.write_bytes(b"")
        # -I: neither the working directory nor the user's Python settings may put a module of theirs before the tools.
        python: list[str | Path] = [_tools(home / "tools", log), "-I"]
        # Nothing is asked of a hub, and nothing is left in its cache.
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
        pytorch, onnx = work / "pytorch", work / "onnx"
        _run("GGUF to PyTorch", [*python, "-c", TO_PYTORCH, gguf, pytorch], log, offline)
        builder = [*python, "-m", "onnxruntime_genai.models.builder"]
        _run("PyTorch to ONNX", [*builder, "-i", pytorch, "-o", onnx, "-c", work / "cache", *BUILD], log, offline)
        if not (onnx / "genai_config.json").is_file():
            raise ConversionError(f"The builder left no genai_config.json for {gguf}. Its output is in {log}.")
        said = _run("a question", [*python, "-c", ASK, onnx, QUESTION, str(ANSWER_TOKENS)], log, offline)
        answer = json.loads(said.splitlines()[-1]).strip()
        if not answer or (gguf.name == weights.find(SMALL).filename and "Paris" not in answer):
            raise ConversionError(f"The model that was made answers {answer!r} to {QUESTION!r}, so it is not kept.")
        console.print(f"{QUESTION} {answer}")
        onnx.rename(out)
    if clean:
        shutil.rmtree(home / "tools")


def _tools(folder: Path, log: Path) -> Path:
    """The Python that has the tools. An environment that was not finished, or has other versions, is made anew."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not _tools_are_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-input"]
        # Not compiled: most of what is installed is never imported here, and the rest is compiled by being so.
        pip += ["--disable-pip-version-check", "--no-compile", *REQUIREMENTS, "-c", CONSTRAINTS]
        _run("the tools", pip, log, dict(os.environ))
        (folder / "whole").write_text(_recipe())
    return python


def _tools_are_whole(folder: Path) -> bool:
    try:
        return (folder / "whole").read_text() == _recipe()
    except OSError:
        return False


def _recipe() -> str:
    return " ".join((*REQUIREMENTS, f"python=={sys.version_info[0]}.{sys.version_info[1]}"))


def _run(step: str, command: list[str | Path], log: Path, environment: dict[str, str]) -> str:
    """What the command printed, which also is in the log. While it runs: the step, its per cent, its seconds."""
    began = time.monotonic()
    output = log.with_name(f"{log.stem}-step{log.suffix}")
    with output.open("wb") as sink, console.status(step) as shown:
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    shown.update(f"{step} {_percent(output)} {time.monotonic() - began:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    said = output.read_text("utf-8", "replace")
    with log.open("a", encoding="utf-8") as whole:
        whole.write(f"== {step}\n{said}\n")
    output.unlink()
    if process.returncode != 0:
        raise ConversionError(
            f"{step[0].upper()}{step[1:]}: {_reason(said, process.returncode)}. All of it is in {log}."
        )
    console.print(f"{step}: {time.monotonic() - began:.0f} s")
    return said


def _percent(output: Path) -> str:
    """The last one that was printed."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 4096))
        found = re.findall(rb"(\d{1,3})(?:\.\d+)?%", file.read())
    return f"{found[-1].decode()} %" if found else ""


def _reason(said: str, status: int) -> str:
    """pip's first error, or the last line of a Python traceback."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or [f"it ended with status {status}"])[0].rstrip(".")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.onnx_from_gguf", description="GGUF to ONNX, for Foundry Local."
    )
    parser.add_argument("--gguf", type=Path, help=f"the model to convert; without it {SMALL}, fetched if need be")
    parser.add_argument("--out", type=Path, help="the folder to make; without it one in the cache folder")
    parser.add_argument("--clean", action="store_true", help="remove the tools afterwards (1.1 GB)")
    chosen = parser.parse_args()
    try:
        print(build(chosen.gguf, chosen.out, Settings.load(), clean=chosen.clean))
    except RagError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        print(
            f"The disk does not allow it: {error}. Make room, or set RAG_CACHE_DIR to another folder.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
