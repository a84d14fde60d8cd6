"""Names that people use, and the ids that servers have: what fits, what fits best, and what must never be guessed."""

from collections.abc import Sequence

import pytest

from rag.errors import ModelUnknown
from rag.models.discovery import Offered, Server
from rag.models.names import MOST_LISTED, choose, resolve, unknown

# What Foundry Local's catalogue has for one machine, and then some.
FOUNDRY = (
    "Phi-4-mini-instruct-generic-cpu:5",
    "Phi-4-mini-reasoning-generic-cpu:3",
    "Phi-4-generic-cpu:2",
    "Phi-3.5-mini-instruct-generic-cpu:2",
    "Phi-3-mini-4k-instruct-generic-cpu:3",
    "Phi-3-mini-128k-instruct-generic-cpu:3",
    "gpt-oss-20b-generic-cpu:1",
    "qwen2.5-0.5b-instruct-generic-cpu:4",
    "qwen2.5-coder-0.5b-instruct-generic-cpu:4",
    "qwen2.5-1.5b-instruct-generic-cpu:4",
    "deepseek-r1-distill-qwen-7b-generic-cpu:4",
    "mistralai-Mistral-7B-Instruct-v0-2-generic-cpu:2",
    "smollm2-135m-instruct-generic-cpu:1",
)
OLLAMA = ("qwen3:8b", "qwen3:latest", "phi4-mini:latest", "llama3.2:3b", "llama3.2:1b", "llama3.2:3b-instruct-q4_K_M", "hf.co/bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M")  # fmt: skip
LM_STUDIO = ("microsoft/phi-4-mini", "microsoft/phi-4-mini-reasoning", "qwen2-vl-7b-instruct", "google/gemma-3-4b@q4_k_m")  # fmt: skip
LLAMA = ("/models/phi-4-mini-Q4_K_M.gguf", "/models/phi-4-mini-reasoning-Q4_K_M.gguf", "/models/gpt-oss-20b-mxfp4-00001-of-00002.gguf")  # fmt: skip
VLLM = ("Qwen/Qwen2.5-0.5B-Instruct",)


def of(ids: Sequence[str], loaded: Sequence[str] = ()) -> list[Offered]:
    return [Offered(id, id in loaded) for id in ids]


def found(wanted: str, ids: Sequence[str], loaded: Sequence[str] = (), **options: bool) -> str | None:
    offered = resolve(wanted, of(ids, loaded), **options)
    return offered.id if offered else None


@pytest.mark.parametrize(
    ("wanted", "ids", "id"),
    [
        # exact
        ("Phi-4-mini-instruct-generic-cpu:5", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("qwen3:8b", OLLAMA, "qwen3:8b"),
        ("microsoft/phi-4-mini", LM_STUDIO, "microsoft/phi-4-mini"),
        ("/models/phi-4-mini-Q4_K_M.gguf", LLAMA, "/models/phi-4-mini-Q4_K_M.gguf"),
        ("Qwen/Qwen2.5-0.5B-Instruct", VLLM, "Qwen/Qwen2.5-0.5B-Instruct"),
        ("  qwen3:8b ", OLLAMA, "qwen3:8b"),
        # exact before anything else
        ("phi-4-mini", ("Phi-4-mini-instruct-cuda-gpu:5", "phi-4-mini"), "phi-4-mini"),
        ("phi-4-mini", ("PHI-4-MINI", "phi-4-mini"), "phi-4-mini"),
        ("qwen3", ("qwen3:latest", "qwen3"), "qwen3"),
        ("qwen3", ("Qwen3:latest", "qwen3:latest"), "qwen3:latest"),
        # in other letters
        ("phi-4-MINI-instruct-generic-cpu:5", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("QWEN3:8B", OLLAMA, "qwen3:8b"),
        ("qwen/qwen2.5-0.5b-instruct", VLLM, "Qwen/Qwen2.5-0.5B-Instruct"),
        # as Ollama has it
        ("qwen3", OLLAMA, "qwen3:latest"),
        ("Qwen3", OLLAMA, "qwen3:latest"),
        ("phi4-mini", OLLAMA, "phi4-mini:latest"),
        ("mine", ("mine:2", "mine:latest"), "mine:latest"),
        # without version
        ("Phi-4-mini-instruct-generic-cpu", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("phi-4-mini-instruct-generic-cpu", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("a-generic-cpu", ("a-generic-cpu:9", "a-generic-cpu:10", "a-generic-cpu:2"), "a-generic-cpu:10"),
        ("Phi-4-generic-cpu", FOUNDRY, "Phi-4-generic-cpu:2"),
        # alias
        ("phi-4-mini", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("Phi-4-Mini", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("phi-4-mini-instruct", FOUNDRY, "Phi-4-mini-instruct-generic-cpu:5"),
        ("phi-4-mini-reasoning", FOUNDRY, "Phi-4-mini-reasoning-generic-cpu:3"),
        ("phi-4", FOUNDRY, "Phi-4-generic-cpu:2"),
        ("phi-3-mini-4k", FOUNDRY, "Phi-3-mini-4k-instruct-generic-cpu:3"),
        ("phi-3.5-mini", FOUNDRY, "Phi-3.5-mini-instruct-generic-cpu:2"),
        ("gpt-oss-20b", FOUNDRY, "gpt-oss-20b-generic-cpu:1"),
        ("qwen2.5-0.5b", FOUNDRY, "qwen2.5-0.5b-instruct-generic-cpu:4"),
        ("qwen2.5-coder-0.5b", FOUNDRY, "qwen2.5-coder-0.5b-instruct-generic-cpu:4"),
        ("smollm2-135m", FOUNDRY, "smollm2-135m-instruct-generic-cpu:1"),
        ("llama-2", ("Llama-2-chat-cuda-gpu:1",), "Llama-2-chat-cuda-gpu:1"),
        ("phi-4-mini", ("phi-4-mini-instruct-cuda-gpu",), "phi-4-mini-instruct-cuda-gpu"),
        ("phi-4-mini", ("phi-4-mini-instruct-tensorrt-rtx-gpu:1",), "phi-4-mini-instruct-tensorrt-rtx-gpu:1"),
        ("phi-4", ("Phi-4-instruct-generic-cpu:1", "Phi-4-generic-cpu:1"), "Phi-4-generic-cpu:1"),
        # publisher
        ("phi-4-mini", LM_STUDIO, "microsoft/phi-4-mini"),
        ("PHI-4-mini", LM_STUDIO, "microsoft/phi-4-mini"),
        ("qwen2.5-0.5b-instruct", VLLM, "Qwen/Qwen2.5-0.5B-Instruct"),
        # file
        ("phi-4-mini", LLAMA, "/models/phi-4-mini-Q4_K_M.gguf"),
        ("phi-4-mini-Q4_K_M", LLAMA, "/models/phi-4-mini-Q4_K_M.gguf"),
        ("phi-4-mini-q4_k_m.gguf", LLAMA, "/models/phi-4-mini-Q4_K_M.gguf"),
        ("/elsewhere/phi-4-mini-Q4_K_M.gguf", LLAMA, "/models/phi-4-mini-Q4_K_M.gguf"),
        ("gpt-oss-20b", LLAMA, "/models/gpt-oss-20b-mxfp4-00001-of-00002.gguf"),
        ("phi-4-mini", ("C:\\models\\phi-4-mini-Q4_K_M.gguf",), "C:\\models\\phi-4-mini-Q4_K_M.gguf"),
        ("phi-4-mini", ("phi-4-mini-UD-IQ2_XXS.gguf",), "phi-4-mini-UD-IQ2_XXS.gguf"),
        ("phi-4-mini", ("phi-4-mini.BF16.gguf",), "phi-4-mini.BF16.gguf"),
        ("gemma-3-1b-it", ("ggml-org/gemma-3-1b-it-GGUF:Q4_K_M",), "ggml-org/gemma-3-1b-it-GGUF:Q4_K_M"),
        ("gemma-3-4b", LM_STUDIO, "google/gemma-3-4b@q4_k_m"),
        ("llama3.2:3b-instruct", OLLAMA, "llama3.2:3b-instruct-q4_K_M"),
        ("SmolLM2-135M-Instruct", OLLAMA, "hf.co/bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M"),
    ],
)  # fmt: skip
def test_a_name_finds_the_model_that_is_meant(wanted: str, ids: Sequence[str], id: str) -> None:
    assert found(wanted, ids) == id
    assert found(wanted, tuple(reversed(ids))) == id


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ("", FOUNDRY),
        ("  ", FOUNDRY),
        ("phi-4-mini", ()),
        # a shorter name is another model
        ("phi", FOUNDRY),
        ("phi-4", ("Phi-4-mini-instruct-generic-cpu:5", "Phi-4-mini-reasoning-generic-cpu:3")),
        ("phi-4-mini", ("Phi-4-mini-reasoning-generic-cpu:3", "Phi-4-mini-zava-openvino-npu:1")),
        ("phi-3-mini", FOUNDRY),
        ("qwen2.5", FOUNDRY),
        ("qwen2.5-7b", FOUNDRY),
        ("Mistral-7B", FOUNDRY),
        ("gpt-oss", FOUNDRY),
        ("gpt-oss-120b", FOUNDRY),
        # an alias that cannot be told from the id
        ("deepseek-r1-7b", FOUNDRY),
        # what looks like an execution provider and is none
        ("phi-4", ("Phi-4-mini-gpu:1", "Phi-4-mini-cpu", "phi-4-turbo-generic-cpu:1")),
        ("phi-4-mini", ("phi-4-mini-instruct-cpu:1", "phi-4-mini-instruct-generic", "phi-4-mini-instruct-generic-cpu-x:1")),
        # another version than the one that was named
        ("Phi-4-mini-instruct-generic-cpu:4", FOUNDRY),
        ("Phi-4-mini-instruct-generic-cpu:50", FOUNDRY),
        ("phi-4-mini:5", FOUNDRY),
        ("phi-4-mini-instruct-cuda-gpu:5", ("phi-4-mini-instruct-cuda-gpu",)),
        # tuned in two ways: two models
        ("llama-2", ("Llama-2-chat-generic-cpu:1", "Llama-2-instruct-generic-cpu:1")),
        # a tag is no version
        ("llama3.2", OLLAMA),
        ("qwen3:14b", OLLAMA),
        ("qwen3:", OLLAMA),
        ("llama3.2:latest", OLLAMA),
        # two publishers, two files, two quantisations
        ("phi-4-mini", ("microsoft/phi-4-mini", "lmstudio-community/phi-4-mini")),
        ("other/phi-4-mini", LM_STUDIO),
        ("phi-4-mini", ("/a/phi-4-mini-Q4_K_M.gguf", "/b/phi-4-mini-Q8_0.gguf")),
        ("phi-4-mini-Q8_0", LLAMA),
        ("phi-4-mini-Q8_0.gguf", LLAMA),
        ("phi-4", LLAMA),
        ("models/phi-4-mini", LLAMA),
        ("phi-4-mini-instruct", LLAMA),
        # two that differ in letters only, neither as it was written
        ("PHI-4-mini", ("phi-4-mini", "Phi-4-Mini")),
        # patterns are no names
        ("phi-4-.*", FOUNDRY),
        (".*", FOUNDRY),
        ("phi-4-mini|gpt-oss-20b", FOUNDRY),
    ],
)  # fmt: skip
def test_what_fits_nothing_or_several_is_never_guessed(wanted: str, ids: Sequence[str]) -> None:
    assert found(wanted, ids) is None
    assert found(wanted, tuple(reversed(ids))) is None


BUILDS = (
    "Phi-4-mini-instruct-generic-cpu:5",
    "Phi-4-mini-instruct-generic-gpu:7",
    "Phi-4-mini-instruct-cuda-gpu:4",
    "Phi-4-mini-instruct-cuda-gpu:5",
    "phi-4-mini-instruct-openvino-npu:3",
)


def test_of_one_models_builds_npu_comes_before_gpu_before_a_generic_gpu_before_cpu() -> None:
    left = list(BUILDS)
    order = []
    while left:
        id = found("phi-4-mini", left)
        assert id is not None
        order.append(id)
        left.remove(id)
    assert order == [
        "phi-4-mini-instruct-openvino-npu:3",
        "Phi-4-mini-instruct-cuda-gpu:5",
        "Phi-4-mini-instruct-cuda-gpu:4",
        "Phi-4-mini-instruct-generic-gpu:7",
        "Phi-4-mini-instruct-generic-cpu:5",
    ]


@pytest.mark.parametrize("loaded", BUILDS)
def test_a_build_that_is_loaded_comes_first(loaded: str) -> None:
    assert found("phi-4-mini", BUILDS, [loaded]) == loaded
    assert found("phi-4-mini", BUILDS, [loaded], loaded_first=False) == "phi-4-mini-instruct-openvino-npu:3"


def test_an_older_version_that_is_loaded_is_not_loaded_anew_as_a_newer_one() -> None:
    ids = ("a-cuda-gpu:4", "a-cuda-gpu:5")
    assert found("a-cuda-gpu", ids, ["a-cuda-gpu:4"]) == "a-cuda-gpu:4"
    assert found("a-cuda-gpu", ids, ["a-cuda-gpu:4"], loaded_first=False) == "a-cuda-gpu:5"


def test_an_id_that_is_written_out_is_that_one_whatever_is_loaded() -> None:
    assert found(BUILDS[0], BUILDS, BUILDS[1:]) == BUILDS[0]


def test_a_model_that_only_shares_its_beginning_is_not_taken_because_it_is_loaded() -> None:
    ids = (*FOUNDRY, "Phi-4-mini-reasoning-qnn-npu:9")
    loaded = ["Phi-4-mini-reasoning-generic-cpu:3", "Phi-4-mini-reasoning-qnn-npu:9"]
    assert found("phi-4-mini", ids, loaded) == "Phi-4-mini-instruct-generic-cpu:5"
    assert found("phi-4", ids, loaded) == "Phi-4-generic-cpu:2"


def test_an_alias_that_the_server_tells_needs_no_pattern() -> None:
    offered = [
        Offered("deepseek-r1-distill-qwen-7b-generic-cpu:4", alias="deepseek-r1-7b"),
        Offered("deepseek-r1-distill-qwen-7b-cuda-gpu:4", alias="deepseek-r1-7b"),
        Offered("mistralai-Mistral-7B-Instruct-v0-2-generic-cpu:2", alias="mistral-7b-v0.2"),
    ]
    assert resolve("DeepSeek-R1-7B", offered) == offered[1]
    assert resolve("mistral-7b-v0.2", offered) == offered[2]
    assert resolve("deepseek-r1-distill-qwen-7b", offered) == offered[1]
    assert resolve("deepseek-r1", offered) is None


@pytest.mark.parametrize(
    ("id", "provider"),
    [
        ("Phi-4-mini-instruct-generic-cpu:5", "CPU"),
        ("Phi-4-mini-instruct-cuda-gpu:5", "CUDA GPU"),
        ("Phi-4-mini-instruct-generic-gpu", "WebGPU GPU"),
        ("phi-4-mini-instruct-webgpu-gpu:1", "WebGPU GPU"),
        ("phi-3-mini-4k-directml-gpu:1", "DirectML GPU"),
        ("phi-3-mini-4k-DML-GPU:1", "DirectML GPU"),
        ("qwen2.5-1.5b-instruct-qnn-npu:2", "QNN NPU"),
        ("phi-4-mini-instruct-openvino-npu:3", "OpenVINO NPU"),
        ("qwen2.5-1.5b-instruct-trtrtx-gpu", "TensorRT GPU"),
        ("a-vitis-npu:1", "Vitis AI NPU"),
        ("a-generic-npu:1", "NPU"),
        ("qwen3:8b", None),
        ("microsoft/phi-4-mini", None),
        ("phi-4-mini-Q4_K_M.gguf", None),
        ("gpt-4-cpu", None),
    ],
)
def test_the_id_tells_what_a_foundry_model_runs_on(id: str, provider: str | None) -> None:
    assert Offered(id).provider == provider


# over several servers


def server(ids: Sequence[str], port: int, found_by: str = "", loaded: Sequence[str] = ()) -> Server:
    return Server(f"http://127.0.0.1:{port}/v1", "openai", found_by or f"port {port}", models=tuple(of(ids, loaded)))


@pytest.mark.parametrize(
    ("wanted", "first", "second", "port"),
    [
        ("phi-4-mini", ("phi-4-mini",), ("phi-4-mini",), 1),
        ("phi-4-mini", FOUNDRY, ("phi-4-mini",), 2),
        ("phi-4-mini", ("Phi-4-mini",), ("phi-4-mini",), 2),
        ("phi-4-mini", LM_STUDIO, FOUNDRY, 2),
        ("phi-4-mini", LLAMA, LM_STUDIO, 2),
        ("phi-4-mini", FOUNDRY, LM_STUDIO, 1),
        ("Phi-4-mini-instruct-generic-cpu", FOUNDRY, ("Phi-4-mini-instruct-generic-cpu",), 2),
        ("qwen3", ("qwen3:1",), OLLAMA, 2),
        ("qwen3", (), OLLAMA, 2),
    ],
)
def test_the_strongest_match_wins_and_among_equals_the_earlier_server(
    wanted: str, first: Sequence[str], second: Sequence[str], port: int
) -> None:
    match = choose(wanted, [server(first, 1), server(second, 2)])
    assert match is not None
    assert match[0].base_url == f"http://127.0.0.1:{port}/v1"
    assert match[1] in match[0].models


def test_a_loaded_build_on_a_later_server_does_not_outrank_the_earlier_server() -> None:
    match = choose("phi-4-mini", [server(BUILDS[:1], 1), server(BUILDS, 2, loaded=BUILDS)])
    assert match is not None
    assert match[0].base_url == "http://127.0.0.1:1/v1"


def test_no_server_has_what_none_has() -> None:
    assert choose("llama-9", [server(FOUNDRY, 1), server(OLLAMA, 2)]) is None
    assert choose("llama-9", []) is None


# the error


def test_a_name_that_fits_nothing_is_told_with_all_ids_server_by_server() -> None:
    error = unknown("phi-9", [server(("a", "b"), 1), server(("c",), 2)])
    assert isinstance(error, ModelUnknown)
    assert str(error) == (
        "No model 'phi-9': OpenAI-compatible server at http://127.0.0.1:1/v1 has a, b; OpenAI-compatible server at"
        " http://127.0.0.1:2/v1 has c. Set RAG_SLM_MODEL or RAG_LLM_MODEL to one of them."
    )


@pytest.mark.parametrize("leg", ["SLM", "LLM"])
def test_the_setting_to_change_is_that_of_the_server_that_was_named(leg: str) -> None:
    text = str(unknown("phi-9", [server(("a", "b"), 1, f"RAG_{leg}_BASE_URL")]))
    assert text == (
        f"No model 'phi-9': RAG_{leg}_BASE_URL (http://127.0.0.1:1/v1) has a, b. Set RAG_{leg}_MODEL to one of them."
    )


def test_two_addresses_that_were_exchanged_are_suspected() -> None:
    slm, llm = server(("gpt-oss-20b",), 1, "RAG_SLM_BASE_URL"), server(("phi-4-mini",), 2, "RAG_LLM_BASE_URL")
    assert str(unknown("phi-4-mini", [slm, llm])) == (
        "RAG_SLM_BASE_URL (http://127.0.0.1:1/v1) has gpt-oss-20b. phi-4-mini is at http://127.0.0.1:2/v1"
        " (RAG_LLM_BASE_URL): are the two addresses swapped?"
    )
    assert "gpt-oss-20b is at http://127.0.0.1:1/v1 (RAG_SLM_BASE_URL)" in str(unknown("gpt-oss-20b", [llm, slm]))


def test_a_model_that_is_on_another_server_is_told_with_its_address() -> None:
    named, other = server(("a",), 1, "RAG_SLM_BASE_URL"), Server("http://127.0.0.1:11434/v1", "ollama", "port 11434", models=tuple(of(OLLAMA)))  # fmt: skip
    assert str(unknown("qwen3", [named, other])).endswith(
        "qwen3 is at http://127.0.0.1:11434/v1 (Ollama): set RAG_SLM_BASE_URL to that."
    )
    here = Server("", "embedded", "catalogue", models=(Offered("qwen2.5-coder-0.5b"),))
    assert str(unknown("qwen2.5-coder-0.5b", [named, here])).endswith("runs here by itself: remove RAG_SLM_BASE_URL.")
    assert "this program itself has qwen2.5-coder-0.5b" in str(unknown("phi-9", [named, here]))


def test_a_model_that_could_be_fetched_is_told_with_the_command_that_fetches_it() -> None:
    foundry = Server(
        "http://127.0.0.1:5273/v1", "foundry", "port 5273", models=(Offered("Phi-4-mini-instruct-generic-cpu:5"),),
        catalogue=(Offered("gpt-oss-20b-generic-cpu:1"), Offered("deepseek-r1-distill-qwen-7b-generic-cpu:4", alias="deepseek-r1-7b")),
    )  # fmt: skip
    assert "foundry model download gpt-oss-20b, then foundry model load gpt-oss-20b" in str(
        unknown("gpt-oss-20b", [foundry])
    )
    assert "foundry model download deepseek-r1-7b" in str(unknown("deepseek-r1-distill-qwen-7b", [foundry]))
    assert "Phi-4-mini-instruct-generic-cpu:5" in str(unknown("gpt-oss-20b", [foundry]))


def test_servers_without_models_say_why() -> None:
    broken = Server(
        "http://127.0.0.1:1/v1", "openai", "port 1", problem="The server at 1 wants a key. Set RAG_SLM_API_KEY."
    )
    text = str(unknown("phi-9", [broken, server((), 2)]))
    assert "http://127.0.0.1:1/v1 has no known models (The server at 1 wants a key. Set RAG_SLM_API_KEY)" in text
    assert "http://127.0.0.1:2/v1 has no models" in text
    assert "no model server was found" in str(unknown("phi-9", []))


def test_a_long_list_of_ids_is_cut() -> None:
    text = str(unknown("phi-9", [server([f"m{n}" for n in range(100)], 1)]))
    assert f"m{MOST_LISTED - 1} and {100 - MOST_LISTED} more." in text
    assert f"m{MOST_LISTED}," not in text
