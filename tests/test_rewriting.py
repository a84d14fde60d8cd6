"""Which questions lean on the conversation, and what they carry over from it."""

import pytest

from rag.corpus.documents import read, split
from rag.corpus.index import BM25Index, SmallEngine
from rag.corpus.library import Library
from rag.turn.rewriting import leans, rewrite
from rag.turn.session import Exchange

# Question, its answer, the follow-up, and words of the passage that answers it.
CONVERSATIONS = [
    ("What is BM25?", "A formula that ranks passages.", "And who developed it?", "Stephen Robertson"),
    ("What does the parameter k1 do in BM25?", "It sets how soon words stop counting.", "What is its default in Lucene?", "Lucene is 1.2"),
    ("What is the BM25 parameter b?", "It holds long passages back.", "And its default value?", "Lucene is 0.75"),
    ("What is inverse document frequency?", "How rare a term is.", "Can it be negative?", "never negative"),
    ("What are the strengths of BM25?", "It finds exact words.", "And its limits?", "does not know synonyms"),
    ("How does rank-bm25 scale?", "Its query time grows.", "Why does it slow down?", "looks at every passage"),
    ("What is a cascade?", "The small model answers first.", "And what about a router?", "A router decides before"),
    ("What is a logprob?", "The logarithm of a probability.", "What if the server does not return them?", "Not every model server returns logprobs"),
    ("What is grounding?", "Support by the passages.", "What does it not catch?", "does not catch an answer that copies"),
    ("What is the threshold?", "The lowest confidence at which a draft stands.", "And what is the default?", "default threshold of Small First was fitted"),
    ("What is GGUF?", "A file format.", "What does such a file hold? What is in it?", "A GGUF file holds the weights"),
    ("What is Q4_1?", "A 4-bit format.", "How many bits per weight does it use?", "exactly 5 bits per weight"),
    ("How large is the SmolLM2-135M file?", "98,362,432 bytes.", "And how many bits per weight is that?", "5.8 bits per weight"),
    ("What is the key-value cache?", "What a model has computed about earlier tokens.", "How much memory does it need?", "23,040 bytes"),
    ("What is ONNX Runtime?", "A program library.", "Under which licence is it published?", "MIT licence"),
    ("What is ONNX?", "An open file format.", "Who introduced it?", "Microsoft and Facebook introduced ONNX"),
    ("What is an opset?", "A numbered version of operators.", "What if it is too new?", "may refuse to load"),
    ("What is WebGPU?", "A browser interface.", "Who standardised it?", "standardised by the W3C"),
    ("What is WGSL?", "A shading language.", "And shader-f16?", "16-bit floating-point"),
    ("What is WebAssembly?", "A compact format.", "Which headers does it need for several threads?", "COOP and COEP"),
    ("What is Foundry Local?", "A program that runs models.", "How does it choose its port?", "dynamic port"),
    ("What is phi-4-mini?", "A small model from Microsoft.", "And how many parameters does it have?", "3.8 billion parameters"),
    ("What is SLM mode?", "The small model alone answers.", "And LLM mode?", "LLM mode the larger model answers"),
    ("What does the receipt show?", "The model and the times.", "Does it show tokens?", "tokens read and written"),
    ("How do I add a document to a chat?", "Drop it onto the message box.", "How large may it be?", "up to 10 MB"),
    ("What is prefill?", "Reading the prompt.", "How can I shorten it?", "Fewer passages shorten prefill"),
    ("What is the example price of input tokens?", "0.40 dollars per million.", "And for output?", "1.60 dollars"),
    ("什麼是升級？", "草稿沒有通過評分。", "那什麼時候會發生？", "有兩種情況會升級"),
    ("預設的小模型是什麼？", "SmolLM2-135M。", "它有多大？", "檔案大小是 98 MB"),
    ("什麼是信心分數？", "0 與 1 之間的分數。", "它怎麼來的？", "信心分數綜合了好幾種訊號"),
]  # fmt: skip

LEANING = """
And how much does it cost?|Why?|And in Berlin?|What about France?|How many?|When do they drink?|What is its capital?
Which large river do they drink from?|And the larger one?|What does that mean?|What were those peptides made of?
When they landed in England, what did they do?|In 1066, what did they do?|How much does the first one cost?
When did England formally declare war on it?
Und wie viel kostet es?|Wie lange hält sie?|Warum?|Was kostet das?|Und die Garantie?|Wer hat ihn gebaut?
Et combien coûte-t-il ?|Combien coûte-t-elle ?|Quelle est sa capitale ?
¿Y cuánto cuesta?|¿Cuánto cuesta?|¿Cuál es su capital?
А сколько это стоит?|Сколько он стоит?|Кто её построил?
那要多少錢？|它有多大？|價格呢？|為什麼？|他是誰？|这个多少钱？
それはいくらですか？|値段は？|そして、誰が作りましたか？
"""
STANDING = """
What is BM25?|What is BM25 and how does it work?|What is stemming?|What does phi-4-mini cost?|Why is the sky blue?
And what is the default threshold of Small First?|How is it possible to run Small First offline?
How long does it take to load the larger model?|Which document describes the treaty that ended the war?
What did Rollo do with his army?|Who was the son of Rollo?|Why do plants need light?|What do zebras drink?
Was ist BM25?|Wie lange dauert es, bis eine Batterie voll ist?|Wie viel kostet das Fahrrad Modell X?|Können Sie erklären, was Prefill bedeutet?
Wie viele Modi gibt es in Small First?|Was ist die Hauptstadt von Frankreich?
Qu'est-ce que le BM25 ?|Quelle est la capitale de la France ?
¿Cuál es la capital de Francia?|¿Cuánto cuesta la bicicleta eléctrica?
Что такое BM25?|Сколько стоит велосипед Атлант?|Кто построил Эйфелеву башню?
小模型是什麼？|什麼是升級？|信心分數怎麼來？|什麼時候會升級？
東京の人口は何人ですか？|BM25とは何ですか？
"""


def questions(lines: str) -> list[str]:
    return [question for line in lines.split("\n") for question in line.split("|") if question]


@pytest.mark.parametrize("question", questions(LEANING))
def test_a_question_without_a_subject_of_its_own_leans(question: str) -> None:
    assert leans(question)


@pytest.mark.parametrize("question", questions(STANDING))
def test_a_question_that_names_its_subject_stands_by_itself(question: str) -> None:
    assert not leans(question)


async def found(library: Library, question: str, history: list[Exchange], words: str, top_k: int = 3) -> bool:
    query = rewrite(question, history, library.index.idf, library.index.languages)
    return any(words in " ".join(hit.passage.text.split()) for hit in await library.index.search(query, top_k))


async def test_follow_ups_over_the_shipped_documents_find(library: Library) -> None:
    alone = carried = 0
    missed = []
    for question, answer, follow_up, words in CONVERSATIONS:
        carried_over = await found(library, follow_up, [Exchange("", question, question, f"{answer} [1]")], words)
        carried += carried_over
        alone += await found(library, follow_up, [], words)
        if not carried_over:
            missed.append(follow_up)
    assert carried >= 0.9 * len(CONVERSATIONS), missed
    assert alone <= carried - 5


async def test_a_chain_of_follow_ups_keeps_its_subject(library: Library) -> None:
    chain = [
        Exchange("", "What is Foundry Local?", "", "A program that runs language models on the device. [1]"),
        Exchange("", "And how does it choose its port?", "", "By default it takes a dynamic port. [1]"),
        Exchange("", "How can I find it out from Python?", "", "The SDK gives the endpoint. [1]"),
    ]
    query = rewrite(
        "How many tokens per second does it write on a CPU?", chain, library.index.idf, library.index.languages
    )
    assert "Foundry Local" in query.context
    assert await found(
        library, "How many tokens per second does it write on a CPU?", chain, "199 to 205 tokens per second"
    )


def test_only_a_leaning_question_carries_words_and_they_can_be_read(library: Library) -> None:
    index = library.index
    history = [Exchange("", "How many parameters does phi-4-mini have?", "", "It has 3.8 billion parameters [1].")]
    assert str(rewrite("What is BM25 good for?", history, index.idf, index.languages)) == "What is BM25 good for?"
    assert rewrite("And how much does it cost?", [], index.idf, index.languages).context == ""
    words = rewrite("And how much does it cost?", history, index.idf, index.languages).context.split()
    assert {"parameters", "phi-4-mini", "billion"} <= set(words)
    assert not {"How", "does", "have", "[1]", "has"} & set(words)


def test_the_words_of_an_answer_that_no_passage_supports_are_not_carried(library: Library) -> None:
    index = library.index
    told = "This is not in your documents, as far as I can find. The nearest: webgpu.txt, latency.pdf."
    history = [Exchange("", "What is Q4_1?", "", told)]
    assert rewrite("Who made it?", history, index.idf, index.languages).context == "Q4_1"


@pytest.mark.parametrize(
    ("language", "question", "follow_up", "words"),
    [
        ("de", "Was ist der Atlas?", "Und wie lange hält er?", "sieben Jahre"),
        ("fr", "Qu'est-ce que le vélo Atlas ?", "Et combien coûte-t-il ?", "trois cents euros"),
        ("es", "¿Qué es la bicicleta Atlas?", "¿Y cuánto cuesta?", "trescientos euros"),
        ("ru", "Что такое велосипед Атлас?", "А сколько он стоит?", "триста евро"),
        ("zh", "阿特拉斯是什麼？", "它多少錢？", "三百歐元"),
        ("ja", "アトラスとは何ですか？", "それはいくらですか？", "三百ユーロ"),
    ],
)
async def test_follow_ups_find_in_other_languages(language: str, question: str, follow_up: str, words: str) -> None:
    texts = {
        "de": ["Der Atlas ist ein Fahrrad. Der Atlas hält sieben Jahre.", "Ein Zelt hält warm. Das Zelt ist nicht von uns."],
        "fr": ["Le vélo Atlas est vert. L'Atlas coûte trois cents euros.", "La tente coûte dix euros, la corde en coûte deux."],
        "es": ["La bicicleta Atlas es verde. La Atlas cuesta trescientos euros.", "La tienda cuesta diez euros y la cuerda cuesta dos."],
        "ru": ["Велосипед Атлас зелёный. Атлас стоит триста евро.", "Палатка стоит десять евро, а верёвка стоит два."],
        "zh": ["阿特拉斯是自行車。阿特拉斯賣三百歐元。", "帳篷要多少錢，沒有人知道。繩子的錢也一樣。"],
        "ja": ["アトラスは自転車です。アトラスは三百ユーロです。", "テントは丈夫です。それは誰もが知っています。"],
    }  # fmt: skip
    passages = [p for n, text in enumerate(texts[language]) for p in split(read(text.encode(), f"{n}.txt"), 700)]
    index = BM25Index([SmallEngine(passages)])
    query = rewrite(follow_up, [Exchange("", question, question, "")], index.idf, index.languages)
    assert query.context
    assert words in (await index.search(query, 1))[0].passage.text
