"""Questions about a document as a whole: which ask so, about which document, and what of it is read for them.

"What is this about?" shares no word with its document, so nothing can be searched for. It is answered from the
outline (headings with their pages), the opening passages, and the first sentence under each main heading. Knows passages
and the names of documents; knows no model. Recognises English, German, French, Spanish, Russian, Chinese and Japanese.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from rag.corpus.analysis import sentences
from rag.corpus.documents import Passage
from rag.corpus.index import Hit

MOST_HEADINGS = 40
MOST_DOCUMENTS = 40
"""Of a list of documents, so many are looked into; the others are counted."""
MOST_NAMES = 20_000
"""In a folder of more documents, the others are not looked for by name in a question."""
LONGEST = 200
"""Characters; a longer question says more than that it wants an overview."""
OPENING = 2
"""Passages from the beginning, before the headings have their turn."""

Reach = Literal["one", "all"]


class Shelf(Protocol):
    """Documents by name."""

    @property
    def sources(self) -> list[str]: ...

    def opening(self, source: str) -> list[Passage]:
        """All passages of one document, in reading order."""
        ...


@dataclass(frozen=True)
class Overview:
    """What is read for a question about documents as a whole."""

    sources: tuple[str, ...]
    outline: str
    """Headings with pages, one a line, "" without headings; of several documents, each with its headings."""
    hits: tuple[Hit, ...]
    """Opening passages, then the first sentence under each main heading; true spans of the documents, unscored."""

    @property
    def name(self) -> str:
        """For a person."""
        return self.sources[0] if len(self.sources) == 1 else f"{len(self.sources):,} documents"


# The grammar of each language, in capitals the parts that the patterns share: a whole question has to fit, so that one
# which merely speaks of "this" or "document" does not. FILE stands for a document's name found in the question.
_PARTS = {
    "NOUN": r"(?:(?:pdf|word|text|uploaded|attached|whole|entire|new|newest|latest|last|first) )*"
    r"(?:documents?|docs?|files?|text|papers?|pdf|uploads?|attachments?|articles?|reports?|book|manual|presentation"
    r"|slides|spreadsheet|sheet|table|notebook|letter|contract|e-?mail|notes)",
    "FOLDER": r"(?:(?:all )?(?:of )?(?:these|those|the|my|our|your|all) (?:uploaded |attached )?"
    r"(?:documents|docs|files|papers|reports|uploads|attachments)"
    r"|(?:this|the|my|your) (?:folder|library|collection|document folder))",
    "DOC": r"(?:FILE|(?:all of )?(?:this|that|the|my|our|your|an?) NOUN(?: FILE)?(?: (?:that )?(?:i|we) (?:just )?"
    r"(?:uploaded|attached|added|sent|dropped)(?: here)?)?)",
    "THIS": r"(?:this|that|it|this one|that one|this thing)",
    "PLEASE": r"(?:(?:please|hi|hello|hey|ok|okay|so|now|and),? )*(?:(?:can|could|would|will) you (?:please )?"
    r"|i(?:'d| would) like (?:you to |to have )?|i (?:want|need) |let me have )?",
    "TAIL": r"(?:,? (?:please|briefly|shortly|quickly|again|for me|to me|in (?:short|brief|general|a nutshell"
    r"|english|german"
    r"|french|spanish|russian|chinese|japanese|(?:\w+|\d+)(?: short)? (?:words?|sentences?|lines?|bullets?"
    r"|paragraphs?|bullet points))|overall|all about|as a whole))*",
}
_ONE = {
    "en": r"PLEASE(?:(?:briefly |quickly )?(?:summari[sz]e|sum up|outline|tl;?dr)(?: me)?"
    r"(?: (?:the )?(?:contents? |key points |main points )?(?:of )?)? ?(?:DOC|THIS)"
    r"|(?:describe|explain) (?:the contents? of )?DOC|(?:tell me|explain|say|know) what (?:DOC|THIS) (?:is"
    r" (?:all )?about|says|contains|covers)"
    r"|tell me (?:something |more )?about DOC"
    r"|(?:give|show|write|make|get|have)?(?: me| us)? ?(?:an?|the)? ?(?:(?:short|brief|quick|general|one-\w+) )*"
    r"(?:summary|overview|outline|gist|abstract|tl;?dr|key points|main points|main ideas?|table of contents)"
    r"(?: (?:of|for|about|on|from) (?:DOC|THIS))?"
    r"|(?:what(?:'s| is| are)|what were) (?:DOC|THIS) (?:(?:all |mainly |mostly )?about|saying)"
    r"|what (?:does|do|did) (?:DOC|THIS) (?:say|cover|contain|describe|discuss|deal with|talk about|tell(?: us| me)?)"
    r"|what(?:'s| is) (?:in(?:side)?|the (?:content|contents|gist|summary|topic|subject|main (?:topic|point|idea"
    r"|message)"
    r"|point|outline|structure) of) DOC"
    r"|what (?:are the )?(?:topics|main points|key points|main topics|key ideas|main ideas)(?: (?:of|in) DOC)?"
    r"(?: (?:does|do) DOC (?:cover|have|discuss))?"
    r"|(?:what|which) (?:topics|subjects|sections|chapters|headings) (?:does|do|has|have) (?:DOC|THIS) "
    r"(?:cover|have|contain|discuss|got)"
    r"|what (?:kind|sort|type) of NOUN is (?:DOC|THIS)|what is (?:this NOUN|FILE)|summary|overview|tl;?dr"
    r"|summari[sz]e)TAIL",
    "de": r"(?:bitte |kannst du |können sie )*(?:(?:mir )?(?:bitte )?"
    r"(?:worum (?:geht(?:'s| es)|handelt es sich)(?: denn)?(?: (?:in|bei|hier(?: in)?)(?: DDOC)?| hier)?"
    r"|wovon handelt DDOC|was (?:steht|ist) (?:in|im) (?:DDOC|dokument|text)|was sagt DDOC(?: aus)?"
    r"|(?:fass|fasse|fassen sie)(?: mir)?(?: bitte)?(?: mal)? DDOC (?:bitte |kurz )*zusammen"
    r"|DDOC (?:kurz |bitte )*zusammenfassen"
    r"|(?:gib|geben sie|erstelle|schreib|zeig)?(?: mir)?(?: bitte)? ?(?:eine?n? )?(?:kurze[nr]? )?"
    r"(?:zusammenfassung|überblick|übersicht|inhaltsangabe|gliederung)(?: (?:von|über|zu|für|des|der|vom)(?: DDOC)?)?"
    r"|was ist der inhalt (?:von |des |der )?DDOC|was ist das für ein DNOUN))(?: bitte)?",
    "fr": r"(?:de quoi (?:parle|traite|s'agit-il dans|est-il question dans|il s'agit dans) (?:FDOC|ça|cela)|de"
    r" quoi ça parle"
    r"|de quoi s'agit-il|que (?:dit|contient|raconte) FDOC|qu'y a-t-il dans FDOC|quel est le (?:sujet|contenu"
    r"|thème) de FDOC"
    r"|(?:peux-tu |pouvez-vous )?(?:résume[zr]?|résumer)(?:-moi)?(?: FDOC)?"
    r"|(?:donne[zr]?|fais|faites)(?:-moi)? (?:un|une) (?:bref |brève |court )?"
    r"(?:résumé|aperçu|synthèse|vue d'ensemble)(?: (?:de|du) FDOC)?)(?: s'il (?:te|vous) plaît)?",
    "es": r"(?:de qué (?:trata|habla|va|se trata) ?(?:SDOC|esto|eso)?|qué (?:dice|contiene|hay en) SDOC"
    r"|cuál es el (?:tema|contenido) (?:de |del )?SDOC|(?:puedes |podrías )?(?:resume|resumir|resúmeme"
    r"|resuma)(?: SDOC)?"
    r"|(?:dame|haz|hazme|escribe) (?:un|una) (?:breve )?(?:resumen|síntesis|visión general)(?: (?:de |del )?SDOC)?)"
    r"(?:,? por favor)?",
    "ru": r"(?:о ч[её]м (?:говорится |речь |идет речь |идёт речь )?(?:в )?(?:RDOC|это)|что (?:написано "
    r"|говорится |содержится )?в RDOC"
    r"|(?:кратко )?(?:перескажи|резюмируй|суммируй|обобщи|опиши)(?:те)?(?: мне)?(?: кратко)? RDOC"
    r"|(?:дай|сделай|напиши)(?:те)?(?: мне)? (?:краткое |краткий )?(?:содержание|обзор|резюме|пересказ)(?: RDOC)?"
    r"|каково содержание RDOC|краткое содержание(?: RDOC)?)(?:,? пожалуйста)?",
    "zh": r"(?:請|请|幫我|帮我|請幫我|请帮我|可以)*(?:(?:CDOC|[這这]|它)(?:的)?(?:主要|大概|大致)?(?:是)?(?:在)?"
    r"(?:說|说|講|讲|談|谈|寫|写|介紹|介绍|討論|讨论|講述|讲述)(?:了|的是|些|的)*(?:什麼|什么|甚麼|啥)(?:內容|内容)?"
    r"|(?:CDOC|[這这])(?:是)?(?:關於|关于|有關|有关)(?:什麼|什么)(?:的)?|CDOC(?:的)?(?:主要)?(?:內容|内容|主題"
    r"|主题|大意|重點|重点|摘要|大綱|大纲)"
    r"(?:是)?(?:什麼|什么)?|CDOC(?:裡|里|中)?(?:有|寫|写)(?:什麼|什么|哪些)(?:內容|内容)?"
    r"|(?:總結|总结|摘要|概括|概述|簡述|简述|歸納|归纳|介紹|介绍)(?:一下)?(?:CDOC)?(?:的)?(?:內容|内容|重點|重点)?"
    r"|(?:給|给)(?:我)?(?:CDOC的)?(?:一個|一个|一份)?(?:摘要|總結|总结|概述|大綱|大纲))(?:[嗎吗呢])?",
    "ja": r"(?:JDOC|これ)は(?:何|なん|どんな内容)(?:について|に関するもの|の(?:文書|ファイル|資料))?(?:ですか"
    r"|書かれていますか|書いてありますか"
    r"|説明していますか|述べていますか)?|(?:JDOC|これ)(?:の内容)?を?(?:要約|まとめ)(?:して|てください|してください)*"
    r"|JDOCの(?:概要|要約|内容|要点)(?:は(?:何ですか)?|を(?:教えて|示して|説明して)(?:ください)?)?",
}
_ALL = {
    "en": r"PLEASE(?:(?:what|which) (?:documents|docs|files|papers|reports) (?:are (?:there|here|in FOLDER"
    r"|available|loaded|indexed)"
    r"|do (?:you|we|i) (?:have|know|read|see)|have (?:you|we|i)(?: got)?|can i ask (?:you )?about|is this about)"
    r"|(?:list|show|name|enumerate)(?: me)? (?:all )?(?:FOLDER|documents|files)"
    r"|(?:what are|what is|what's) (?:in )?FOLDER(?: (?:all )?about)?|what (?:do|does) FOLDER (?:say|cover"
    r"|contain|describe|deal with|talk about)"
    r"|(?:summari[sz]e|describe|sum up) FOLDER"
    r"|(?:give|show)(?: me)? an? (?:\w+ )?(?:overview|summary|list) of FOLDER|(?:overview|summary|list) of FOLDER"
    r"|what can (?:i|we) ask(?: you| here)?(?: about)?|what do you know(?: about)?)TAIL",
    "de": r"(?:welche (?:dokumente|dateien|texte|unterlagen) (?:gibt es|hast du|haben wir|haben sie|sind (?:da"
    r"|hier|vorhanden|geladen)"
    r"|kennst du|liegen vor)(?: hier)?|worum geht(?:'s| es) in (?:diesen|den|meinen|allen) (?:dokumenten|dateien"
    r"|texten|unterlagen)"
    r"|wovon handeln (?:diese|die|meine|alle) (?:dokumente|dateien|texte)"
    r"|(?:liste|zeige?)(?: mir)? (?:alle|die|meine) (?:dokumente|dateien)(?: auf)?"
    r"|was (?:steht|ist) in (?:diesen|den|meinen) (?:dokumenten|dateien))",
    "fr": r"(?:quels (?:documents|fichiers) (?:y a-t-il|as-tu|avez-vous|sont disponibles|connais-tu)|de quoi"
    r" (?:parlent|traitent)"
    r" (?:ces|les|mes) (?:documents|fichiers)|liste[zr]?(?:-moi)? (?:les|tous les|mes) (?:documents|fichiers))",
    "es": r"(?:qué (?:documentos|archivos) (?:hay|tienes|tiene|conoces|están disponibles)|de qué (?:tratan|hablan)"
    r" (?:estos|los|mis) (?:documentos|archivos)|(?:lista|enumera|muestra) (?:los|todos los|mis) (?:documentos"
    r"|archivos))",
    "ru": r"(?:какие (?:тут |здесь |у тебя |у вас )?(?:есть )?(?:документы|файлы)(?: (?:есть|тут|здесь|доступны"
    r"|загружены))*"
    r"|о ч[её]м (?:эти|все|мои) (?:документы|файлы)|(?:перечисли|покажи)(?:те)? (?:все )?(?:документы|файлы))",
    "zh": r"(?:有哪些|有什麼|有什么|列出(?:所有)?(?:的)?)(?:文件|檔案|文档|文檔|資料|资料)|(?:這些|这些"
    r"|所有)(?:的)?(?:文件|檔案|文档|文檔|資料|资料)"
    r"(?:是)?(?:在)?(?:說|说|講|讲|談|谈|寫|写|關於|关于|介紹|介绍)(?:些|的是|了)*(?:什麼|什么|哪些)(?:內容|内容"
    r"|的)?",
    "ja": r"どんな(?:文書|ファイル|資料|ドキュメント)がありますか|(?:これらの|この)(?:文書|ファイル|資料"
    r"|ドキュメント)(?:たち|群)は何についてですか"
    r"|(?:文書|ファイル)の一覧(?:を(?:見せて|示して)(?:ください)?)?",
}
_WORDS_OF = {
    "DNOUN": r"(?:dokument|datei|text|pdf|bericht|artikel|anhang|upload|buch|vertrag|brief|aufsatz)",
    "DDOC": r"(?:FILE|(?:das|dies|es)|(?:dieses?|diese[mnr]|das|dem|den|der|des|die|mein|meine[mnrs]?|im)"
    r" (?:angehängten? |hochgeladenen? )?DNOUN(?:s|es)?(?: FILE)?)",
    "FDOC": r"(?:FILE|(?:ce|cet|cette|le|la|l'|mon|du) ?(?:document|fichier|texte|pdf|rapport|article|livre"
    r"|pièce jointe)(?: FILE)?)",
    "SDOC": r"(?:FILE|(?:este|esta|ese|esa|el|la|mi) (?:documento|archivo|fichero|texto|pdf|informe|artículo"
    r"|libro)(?: FILE)?)",
    "RDOC": r"(?:FILE|(?:(?:этот|этого|этом|эту|этой|эта|мой|моего|моем|данный|данном) )?"
    r"(?:документ|документа|документе|файл|файла|файле|текст|текста|тексте|отч[её]т|отч[её]та|отч[её]те"
    r"|стать[яиюе]|книг[аиуе])(?: FILE)?)",
    "CDOC": r"(?:FILE|(?:[這这那]|本|此|我的|上傳的|上传的)?(?:[一]?[份個个篇本])?(?:上傳的|上传的)?"
    r"(?:文件|檔案|档案|文档|文檔|文章|報告|报告|附件|資料|资料|書|书|論文|论文))",
    "JDOC": r"(?:FILE|(?:この|その|本)?(?:文書|ファイル|資料|ドキュメント|文章|レポート|報告書|論文|PDF|pdf))",
}
_FILE = "\ufffc"
"""Stands in a question for the name of a document."""


def _pattern(grammar: str) -> "re.Pattern[str]":
    for parts in (_PARTS, _WORDS_OF):
        for _ in range(2):  # parts are made of parts
            for name, part in parts.items():
                grammar = re.sub(rf"(?<![A-Z]){name}(?![A-Z])", part.replace("\\", r"\\"), grammar)
    return re.compile(grammar.replace("FILE", f"(?:the )?(?:file |document )?{_FILE}"))


_ONE_PATTERNS = [_pattern(grammar) for grammar in _ONE.values()]
_ALL_PATTERNS = [_pattern(grammar) for grammar in _ALL.values()]
_SPACED = re.compile(r"(?<=[\u2e80-\u9fff]) | (?=[\u2e80-\u9fff])")
_EDGES = " \t\n?？!！.。…¿¡:\"'“”"


def reach(question: str, named: Sequence[str] = ()) -> Reach | None:
    """Is the question about one document as a whole, about all of them, or about something in them (None)?

    `named` are the names by which the question calls a document.
    """
    text = question.casefold().replace("’", "'")
    for name in sorted(named, key=len, reverse=True):
        text = re.sub(rf"[\"'“”`«»]?{re.escape(name.casefold())}[\"'“”`«»]?", _FILE, text)
    text = _SPACED.sub("", " ".join(text.strip(_EDGES).split()))
    if any(pattern.fullmatch(text) for pattern in _ALL_PATTERNS):
        return "all"
    return "one" if any(pattern.fullmatch(text) for pattern in _ONE_PATTERNS) else None


def find(question: str, uploads: Shelf, folder: Shelf, *, talking: bool) -> Overview | None:
    """What to read for the question; None when it is not about documents as a whole.

    The document is the one that it names, or the newest upload, or the only one there is. `talking`: earlier turns may be
    what a bare "it" means, so without an upload it is not taken for a document.
    """
    if len(question) > LONGEST:
        return None
    candidates = [*uploads.sources, *folder.sources]
    lower = question.casefold()
    called = ((source, _called(lower, source)) for source in candidates[:MOST_NAMES])
    names = {source: found for source, found in called if found}
    asked = reach(question, [name for found in names.values() for name in found])
    if asked is None:
        return None
    if asked == "one":
        best = max(names, key=lambda source: max(map(len, names[source])), default=None)
        if best is None and uploads.sources:
            best = uploads.sources[-1]
        if best is None and len(folder.sources) == 1:
            best = folder.sources[0]
        if best is not None:
            return _of_one(best, (uploads if best in uploads.sources else folder).opening(best))
        if talking and _points_only(question):
            return None
    sources = list(dict.fromkeys([*reversed(uploads.sources), *folder.sources]))
    return _of_all(sources, lambda source: (uploads if source in uploads.sources else folder).opening(source))


def _points_only(question: str) -> bool:
    bare = question.casefold().strip(_EDGES)
    return not re.search(
        r"\b(?:document|doc|file|text|paper|pdf|report|dokument|datei|fichier|documento|archivo)\w*\b"
        r"|документ|файл|文件|檔案|文档|文檔|文書|ファイル|資料",
        bare,
    )


def _called(question: str, source: str) -> list[str]:
    """The names in the question (in lower case) that mean this document: its path, its file name, that without suffix."""
    name = source.replace("\\", "/").rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    if stem.casefold() not in question:
        return []
    found = []
    for called in dict.fromkeys((source, name, stem)):
        # A short word is a word before it is a name, unless something marks it as one.
        plain = called == stem != name and len(stem) < 12 and re.fullmatch("[A-Za-z ]+", stem)
        before = r"[\"'“”`«»]" if plain else r"(?<![^\W_])" if called[:1].isascii() else ""
        after = r"[\"'“”`«»]" if plain else r"(?![^\W_])" if called[-1:].isascii() else ""
        if re.search(rf"{before}{re.escape(called.casefold())}{after}", question):
            found.append(called)
    return found


def _of_one(source: str, passages: Sequence[Passage]) -> Overview | None:
    if not passages:
        return None
    opening = list(passages[:OPENING])
    firsts = [passage for passage in _main(passages) if passage not in opening][:MOST_HEADINGS]
    hits = [Hit(passage, 0.0) for passage in opening]
    hits += [Hit(_first_sentence(passage), 0.0) for passage in firsts]
    return Overview((source,), _outline(passages), tuple(hits))


def _of_all(sources: Sequence[str], opening: Callable[[str], list[Passage]]) -> Overview | None:
    lines: list[str] = []
    hits: list[Hit] = []
    for source in sources[:MOST_DOCUMENTS]:
        passages = opening(source)
        if not passages:
            continue
        main = list(dict.fromkeys(p.heading[-1] for p in _main(passages) if p.heading))
        lines.append(f"{source}: {'; '.join(main[:6])}" if main else source)
        hits.append(Hit(_first_sentence(passages[0]), 0.0))
    if len(sources) > MOST_DOCUMENTS:
        lines.append(f"and {len(sources) - MOST_DOCUMENTS:,} more documents")
    return Overview(tuple(sources), "\n".join(lines), tuple(hits)) if hits else None


def _outline(passages: Sequence[Passage]) -> str:
    """Each heading once, indented by its depth, with the page where it begins."""
    seen: set[tuple[str, ...]] = set()
    lines: list[str] = []
    for passage in passages:
        for depth in range(1, len(passage.heading) + 1):
            path = passage.heading[:depth]
            if path in seen:
                continue
            seen.add(path)
            unit = "p." if passage.unit in (None, "page") else passage.unit
            page = f" ({unit} {passage.page})" if passage.page is not None else ""
            lines.append(f"{'  ' * (depth - 1)}- {path[-1]}{page}")
    if len(lines) > MOST_HEADINGS:
        # Deep headings go first; what is still too long is cut.
        shallow = [line for line in lines if not line.startswith("    ")]
        shallow = shallow if len(shallow) <= MOST_HEADINGS else [line for line in lines if line.startswith("- ")]
        more = len(lines) - len(shallow[:MOST_HEADINGS])
        lines = [*shallow[:MOST_HEADINGS], f"and {more} more headings"]
    return "\n".join(lines)


def _main(passages: Sequence[Passage]) -> list[Passage]:
    """The first passage under each main heading: the shallowest level that has more than one; without headings,
    of pages."""
    for depth in range(1, 5):
        firsts: dict[tuple[str, ...], Passage] = {}
        for passage in passages:
            if len(passage.heading) >= depth:
                firsts.setdefault(passage.heading[:depth], passage)
        if len(firsts) > 1:
            return list(firsts.values())
    pages: dict[int | None, Passage] = {}
    for passage in passages:
        pages.setdefault(passage.page, passage)
    return list(pages.values())


def _first_sentence(passage: Passage) -> Passage:
    """The passage cut to its first sentence, with true positions."""
    start, end = next(sentences(passage.text), (0, len(passage.text)))
    return replace(
        passage,
        id=f"{passage.id.rpartition(':')[0]}:{passage.start + start}",
        start=passage.start + start,
        end=passage.start + end,
        text=passage.text[start:end],
    )
