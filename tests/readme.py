"""The generated parts of README.md, written by cog (`python -m cogapp -r README.md`) and checked by `make check`.

Knows where each part comes from: the argument parser, the catalogue, the settings, the last saved benchmark.
"""

import json
from pathlib import Path
from typing import Any

import cog

from rag.cli import command_help
from rag.corpus.formats import KINDS
from rag.doctor import CHECKS
from rag.models.weights import CATALOGUE
from rag.settings import Settings

ROOT = Path(__file__).parent.parent
OPEN_WEBUI = {
    "installed size, without weights": ("2,917 MB", "installed_mb", "{:,.0f} MB"),
    "start to ready, nothing to fetch": ("12 s", "start_s", "{:.1f} s"),
    "resident memory, idle, without the model servers": ("806 MB", "memory_mb", "{:,.0f} MB"),
    "first token through its API minus first token of the bare request, median": ("21 ms", "overhead_ms", "{:.1f} ms"),
}


def _table(*rows: tuple[str, ...]) -> None:
    head, *rest = rows
    cog.outl(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rest:
        cog.outl(f"| {' | '.join(row)} |")


def help() -> None:
    cog.outl("```")
    cog.outl(command_help())
    cog.outl("```")


def models() -> None:
    _table(
        ("name", "size", "licence"),
        *((f"`{w.name}`", f"{w.size_bytes / 1e6:,.0f} MB", w.license) for w in CATALOGUE.values()),
    )


def speed() -> None:
    report = _report("speed")
    installed = {one["model"]: one for one in report["backends"] if one["runtime"] == "llama.cpp, as installed"}

    def ratio(one: dict[str, Any], name: str) -> str:
        # The ONNX model is made of the small one's weights, and named after them.
        same = next(other for model, other in installed.items() if one["model"].startswith(model))
        return f"{one[name] / same[name]:.2f}"

    _table(
        ("model", "runtime", "reads", "writes"),
        *(
            (one["model"], one["runtime"], ratio(one, "prefill_tokens_per_s"), ratio(one, "decode_tokens_per_s"))
            for one in report["backends"]
        ),
    )
    cog.outl(
        f"\n`smallfirst bench --backend all`: tokens a second, against the same model as it is installed; prompts of about"
        f" {report['backends'][0]['input_tokens']:,} tokens that no cache holds, medians of {report['rounds']}. {_on(report)}."
    )


def _report(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return report


def _on(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"


# What is told of a comparison, and its name in the report.
COMPARED = {
    "first token, nothing of the prompt kept": "cold_ttft_ms",
    "first token, the prompt kept": "warm_ttft_ms",
    "whole answer, nothing kept": "cold_total_ms",
    "tokens a second, reading": "prefill_tokens_per_s",
    "tokens a second, writing": "decode_tokens_per_s",
    "tokens written": "output_tokens",
    "CPU time": "cpu_s",
    "memory": "peak_memory_mb",
}


def compare() -> None:
    report = _report("compare")
    metrics = report["metrics"]
    small, large = (report["models"][leg]["name"] for leg in ("slm", "llm"))
    _table(
        ("what", f"{large} / {small}"),
        *((what, f"{metrics[f'ratio_{name}']:.2f}") for what, name in COMPARED.items() if f"ratio_{name}" in metrics),
    )
    refined = metrics["refine_total_ms"] / metrics["refine_alone_total_ms"]
    cog.outl(
        f"\n`smallfirst compare --prompts benchmarks/prompts.txt --repeat {report['repeat']} --refine`:"
        f" {len(report['prompts'])} prompts over the shipped documents, both models run here. A draft that the larger model"
        f" refines takes {refined:.2f} times as long as the larger model's own answer, writes"
        f" {metrics['refine_blended_tokens_per_s'] / metrics['llm_decode_tokens_per_s']:.2f} times as many tokens a second"
        f" (both parts together), and the draft's first token comes after"
        f" {metrics['refine_ttft_ms'] / metrics['llm_cold_ttft_ms']:.2f} of the time to the larger model's own. {_on(report)}."
    )


def sweep() -> None:
    report = _report("models")
    rows = []
    for one in report["models"]:
        lengths = {row["label"]: row for row in one["by_length"]}
        (first, shortest), (last, longest) = next(iter(lengths.items())), list(lengths.items())[-1]
        at_once = {row["concurrency"]: row for row in one["by_concurrency"]}

        def ratio(over: dict[str, Any], under: dict[str, Any], name: str, figure: str = "p50") -> str:
            return f"{over[name][figure] / under[name][figure]:.2f}"

        most = max(at_once)
        rows.append(
            (
                one["model"],
                f"{ratio(longest, shortest, 'first_token_ms')} ({last} / {first})",
                ratio(longest, shortest, "prefill_tokens_per_s"),
                ratio(longest, shortest, "decode_tokens_per_s"),
                f"{shortest['inter_token_ms']['p95'] / shortest['inter_token_ms']['p50']:.2f}",
                f"{at_once[most]['tokens_per_s'] / at_once[1]['tokens_per_s']:.2f}",
                f"{ratio(at_once[most], at_once[1], 'first_token_ms')} ({most} / 1)",
            )
        )
    _table(
        (
            "model",
            "first token, longest / shortest prompt",
            "reading speed",
            "writing speed",
            "pause between tokens, 95% / median",
            "tokens/s of all at once / one",
            "median first token, at once / one",
        ),
        *rows,
    )
    cog.outl(
        f"\n`smallfirst bench`, medians; a model that runs here answers one request at a time, so those that come at once"
        f" wait for each other. {_on(report)}."
    )


def own() -> None:
    report = _report("own")
    metrics, small, large = report["metrics"], *(report["compared"][report[leg]] for leg in ("slm", "llm"))

    def row(what: str, name: str, form: str = "{:.2f}") -> tuple[str, ...]:
        return (what, *(form.format(one[name]) if name in one else "" for one in (small, large, metrics)))

    _table(
        ("what", f"{report['slm']} alone", f"{report['llm']} alone", "Auto"),
        row("right", "right"),
        row("right, of those that have an answer", "right_answerable"),
        row("refused, of those that have none", "refused_unanswerable"),
        row("questions given to the larger model", "llm_calls"),
        (
            "CPU seconds, of the larger model's",
            *(f"{one['compute_s'] / large['compute_s']:.2f}" for one in (small, large, metrics)),
        ),
    )
    kinds = ", ".join(f"{kind} {figures['right']:.2f}" for kind, figures in report["parts"]["kind"].items())
    graded = ", ".join(f"{name} {metrics[f'rubric_{name}']:.1f}" for name in ("coherence", "factuality", "concision"))
    cog.outl(
        f"\n`smallfirst evaluate answers --compare`: {report['asked']} questions of our own ({report['dataset']}). Auto, right by"
        f" kind: {kinds}. Rubric, by rules, mean of the answered: {graded}; factuality tells right answers from wrong ones with"
        f" an AUROC of {metrics['rubric_factuality_auroc']:.2f}. Passages read: context recall"
        f" {metrics['context_recall_read']:.2f}. {_on(report)}."
    )


def cost() -> None:
    report = _report("cost")
    here = report["metrics"]["local, per_turn"]
    titles = {one["name"]: one["title"] for one in report["scenarios"]}
    _table(
        ("turns answered by", "cost of a turn, all here = 1"),
        *((title, f"{report['metrics'][f'{name}, per_turn'] / here:.2f}") for name, title in titles.items()),
    )
    even = "; ".join(
        f"against “{titles[one['there']]}” {one['told'].partition(';')[0]}"
        for one in report["break_even"]
        if one["here"] == "local" and one["there"].startswith("cloud")
    )
    assumed = {one["name"]: one["value"] for one in report["assumptions"]}
    cog.outl(
        f"\n`smallfirst cost`, with all that is assumed left as it is ({assumed['turns_per_day']:,.0f} turns a day, a machine of"
        f" {assumed['hardware_price']:,.0f} {report['currency']} for {assumed['life_years']:g} years, list prices of {', '.join(sorted({one['as_of'] for one in report['prices']}))}). All here is,"
        f" {even}."
    )


def settings() -> None:
    def default(name: str, value: object) -> str:
        if name == "docs":
            return "docs_corpus"
        if name == "cache_dir":
            return "the user's cache folder"
        if name == "data_dir":
            return "the user's data folder"
        return "" if value in (None, ()) else f"{value:g}" if isinstance(value, float) else str(value)

    fields = Settings.model_fields
    _table(
        ("variable", "default", "what"),
        *(
            (
                f"`{field.validation_alias or 'RAG_' + name.upper()}`",
                default(name, field.get_default()),
                str(field.description),
            )
            for name, field in fields.items()
        ),
    )


def troubleshooting() -> None:
    _table(
        ("what you see", "what it means", "what to do", "line of the doctor"),
        *((trouble.seen, trouble.means, trouble.mend, check.title) for check in CHECKS for trouble in check.troubles),
    )


def formats() -> None:
    unread, pictures, code = ("ole", "opendocument"), "picture", "code"
    listed = [suffix for suffix, kind in KINDS.items() if kind not in (*unread, pictures, code)]
    of_code = [suffix for suffix, kind in KINDS.items() if kind == code]
    scanned = [suffix for suffix, kind in KINDS.items() if kind == pictures]
    cog.outl(
        f"Read are {', '.join(f'`{suffix}`' for suffix in listed)}; source code and settings in {len(of_code)} kinds of file"
        f" as text; where Tesseract is installed, pictures ({', '.join(f'`{suffix}`' for suffix in scanned)})."
    )


def retrieval() -> None:
    reports = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "benchmarks" / "retrieval").glob("*.json"))
    }
    folder = reports.pop("folder-1000")
    found = [report for report in reports.values() if report["plain_bm25"]]
    _table(
        ("questions", "recall@1", "@3", "MRR@10", "plain BM25, recall@1", "@3"),
        *(
            (
                report["dataset"],
                *(f"{report['metrics'][name]:.3f}" for name in ("recall@1", "recall@3", "mrr@10")),
                *(f"{report['plain_bm25'][name]:.3f}" for name in ("recall@1", "recall@3")),
            )
            for report in found
        ),
    )
    cog.outl(
        "\nEvery paragraph is a passage, one automatic analysis, no language told; plain BM25 has words of letters and"
        " digits, lower case, English stems.\n"
    )
    _table(
        (
            "size",
            "query, median",
            "95%",
            "memory",
            "index built in",
            "bare engine",
            "upload of 40 passages found after",
        ),
        *(
            (
                f"{report['passages']:,} passages",
                f"{m['query_ms_p50']:.2f} ms",
                f"{m['query_ms_p95']:.2f} ms",
                f"{m['memory_mb']:,.0f} MB",
                f"{m['build_s']:.1f} s",
                f"{m['bare_build_s']:.1f} s",
                f"{m['upload_ms']:.0f} ms",
            )
            for report in reports.values()
            if "bare_build_s" in (m := report["metrics"])
        ),
    )
    machine = found[0]["machine"]
    cog.outl(
        "\nReal text of Debian's documentation packages (`benchmarks/debian_docs.py` makes the folder and lists them), its"
        " headings as queries; the index stays on disk, built on one core; the bare engine is tantivy with the plain words,"
        f" tokenised in Python. {machine['system']}, {machine['cores']} cores, Python {machine['python']}.\n\n"
        f"`smallfirst index` over an unchanged folder of {folder['files']:,} files ({folder['passages']:,} passages):"
        f" {folder['opened']} documents opened, ready after {folder['duration_ms'] / 1000:.2f} s."
    )


# What is told of a trial: name in the report, unit.
ANSWERS = {
    "small model alone, right": ("slm_right_answerable", "{:.3f}"),
    "larger model alone, right": ("llm_right_answerable", "{:.3f}"),
    "Auto, right": ("auto_right_answerable", "{:.3f}"),
    "questions given to the larger model": ("auto_llm_calls", "{:.0%}"),
    "unanswerable questions refused": ("auto_refused_unanswerable", "{:.0%}"),
    "answerable questions answered": ("auto_answered_answerable", "{:.0%}"),
    "AUROC of the score, answerable questions": ("auroc_answerable", "{:.3f}"),
    "the same without logprobs": ("auroc_answerable_without_logprobs", "{:.3f}"),
    "expected calibration error": ("ece", "{:.3f}"),
    "share of the gap between the models recovered (APGR)": ("apgr", "{:.3f}"),
    "the most that a perfect judge recovers": ("apgr_oracle", "{:.3f}"),
    "escalations decided before the 17th token": ("auto_escalated_early", "{:.0%}"),
    "of these, those whose whole draft would have stood": ("auto_escalated_early_falsely", "{:.1%}"),
    "drafts given up before their end": ("given_up", "{:.1%}"),
    "judging, median": ("auto_judge_ms_p50", "{:.2f} ms"),
    "judging, 99%": ("auto_judge_ms_p99", "{:.2f} ms"),
    "right answers per compute second, Auto over the best single model": (
        "right_per_compute_s_against_best_single",
        "{:.2f}",
    ),
}


def answers() -> None:
    found = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "benchmarks" / "answers").glob("*/report.json"))
    ]
    _table(
        ("what", *(f"{report['slm']} and {report['llm']}" for report in found)),
        *(
            (what, *(form.format(report["metrics"][name]) for report in found))
            for what, (name, form) in ANSWERS.items()
            if all(name in report["metrics"] for report in found)
        ),
    )
    first = found[0]
    machine = first["machine"]
    cog.outl(
        f"\n{first['dataset']}: {first['questions']:,} questions ({first['answerable']:,} answerable) of"
        f" {len(first['documents'])} articles, {first['by_larger_model']:,} of them by both models; every figure is of"
        " articles that the fit had not seen. A compute second is one of a processor core."
        f" {machine['system']}, {machine['cores']} cores, Python {machine['python']}."
    )


def bench() -> None:
    report = json.loads((ROOT / "benchmarks" / "bench.json").read_text(encoding="utf-8"))
    _table(
        ("what", "Open WebUI", "Small First"),
        *((what, theirs, form.format(report["metrics"][key])) for what, (theirs, key, form) in OPEN_WEBUI.items()),
    )
    machine = report["machine"]
    ratio = report["metrics"].get("ratio")
    times = f", ours takes {ratio:.2f} times as long" if ratio is not None else ""
    cog.outl(
        f"\n{report['starts']} starts, {report['rounds']} pairs of requests, model {report['model']}, asked as `smallfirst-slm`; bare first token"
        f" {report['metrics']['bare_first_token_ms']:.1f} ms (the prompt is in the server's cache, so that only our share"
        f" differs){times}, of ours {report['metrics']['turn_before_request_ms']:.1f} ms is the turn's work before the request is"
        f" sent. {machine['system']}, {machine['cores']} cores, Python {machine['python']}."
    )
