"""What is known of languages: scripts, stemmers, commonest words; and which language a text is in.

Knows no terms and no documents. A language is told by its script and its commonest words, without a model or a network.
"""

import re
from collections import Counter
from functools import cache, lru_cache

import Stemmer

VERSION = 2
"""Changes whenever the same text would be taken for another language: its document is read anew."""
DEFAULT = "en"
"""The language of Latin text too short to tell; also of Latin words inside documents of another script."""

_SNOWBALL = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french",
    "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian",
    "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese",
    "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish",
    "yi": "yiddish",
}  # fmt: skip
# Each language's commonest words, which carry no subject: they tell the language, and are no terms in it.
_COMMON = {
    "en": "a about am an and are as at be been being but by can could describe did do does doing explain for from "
    "had has have he her him his how i if in into is it its may me might must my no not of on or our please "
    "shall she should so such tell than that the their them then there these they this those to us was we "
    "were what when where which who whom whose why will with would you your",
    "de": "aber alle als am an auch auf aus bei bis da das dass dem den denn der des die dies diese diesem diesen "
    "dieser dieses durch ein eine einem einen einer eines er es für gibt hat hatte hatten haben ich ihr ihre "
    "im in ist kann können man mit nach nicht noch nur oder sein seine sich sie sind so über um und uns unter "
    "viel viele vom von vor wann war waren warum was welche welchem welchen welcher welches wenn wer werden "
    "wie wir wird wo wurde wurden zu zum zur zwischen",
    "fr": "à au aux avec ce ces cette comment dans de des du elle elles en est et était été être eux il ils je la "
    "le les leur leurs lui mais même ne nos notre nous on ont ou où par pas plus pour pourquoi qu quand que "
    "quel quelle quelles quels qui sa sans se ses si son sont sur un une vos votre vous c d j l m n s t",
    "es": "a al como con cuál cuáles cuándo cuánto de del donde dónde el ella ellos en entre era es esta este está "
    "estas estos fue ha han hay la las lo los más muy no o para pero por porque qué que quién se sea ser si "
    "sin sobre son su sus también un una uno unos y ya",
    "it": "a ad ai al alla alle anche che chi ci come con cosa da dai dal dalla dei del della delle degli di dove è "
    "e ed era gli ha hanno i il in io la le lo loro ma nei nel nella non o per perché più quale quali quando "
    "quanto questa questo se si sono su sua sul sulla suo tra un una uno c d l",
    "pt": "a ao aos as com como da das de do dos e é ela ele em entre era essa esse esta este está foi há isso mais "
    "mas na nas no nos não o onde os ou para pela pelo por porque qual quais quando quanto que quem são se "
    "sem ser seu seus sua suas também um uma",
    "nl": "aan al als bij dan dat de deze die dit door een en er had hebben heeft het hij hoe hun ik in is je kan "
    "maar meer met naar niet nog of om onder ook op over te tot tussen uit van veel voor waar waarom wanneer "
    "was wat we welk welke werd werden wie wordt worden ze zich zij zijn zou",
    "sv": "alla att av den denna de där dem det detta du efter ej eller en ett finns från för ha hade han har hon "
    "hur i icke in inte jag kan man med men mellan när ni några och om på sig sin sina som så till under upp "
    "ut var vad varför vi vid vilka vilken vilket är över",
    "da": "af alle at blev bliver da de dem den denne der deres det dette du efter eller en er et for fra han har "
    "havde hun hvad hvem hvilke hvilken hvor hvordan hvorfor hvornår i ikke jeg kan man med mellem men nogle "
    "når og også om op over på sig sin som til ud var ved vi være",
    "no": "alle at av ble blir da de dem den denne der deres det dette du eller en er et ett etter for fra han har "
    "hadde hun hva hvem hvilke hvilken hvor hvordan hvorfor i ikke jeg kan man med mellom men noen når og "
    "også om opp over på seg sin som til ut var ved vi være",
    "fi": "ei että hän he ja jos joka jotka kanssa kuin kuinka kun me mikä mitä missä miksi mutta myös ne niin nyt "
    "olla oli ollut on ovat se sekä sen siitä tai tämä vain vai voi",
    "hu": "a az és hogy nem is egy ez ezt van volt vagy de meg már csak mint mi ki ha hol mikor miért milyen mely "
    "amely el fel kell lehet lesz volna még",
    "ro": "al ale am ar are au ca că care ce cu cum de din este fi fost în în într la le mai nu o ori pe pentru "
    "prin sa sau se sunt și si un una unde unei unui",
    "pl": "a albo ale czy co dla do gdy gdzie go i ich ile im ja jak jaka jaki jakie jako jego jej jest już kiedy "
    "kto która które który lub ma może na nad nie o od oraz po pod przez przy są się ta tak tam te tego tej "
    "ten to tu tym w we z za ze że był była było były",
    "cs": "a aby ale ani až by byl byla bylo co do i jak jako je jeho její jejich jen jsou k kde kdo kdy která "
    "které který ma mezi na nad nebo není o od po pod podle pro proč před při s se si tak tato to u v ve z za "
    "že",
    "tr": "ama bir bu çok da daha de değil gibi hangi her için ile ise kadar ki mı mi mu mü nasıl ne neden nerede o "
    "olan olarak oldu olduğu sonra şu ve veya ya",
    "id": "ada adalah agar akan apa atau bagaimana bahwa bisa dalam dan dapat dari dengan di di ini itu juga kapan "
    "karena ke kepada lebih mana mengapa oleh pada saat sebagai siapa sudah tersebut tetapi tidak untuk yang",
    "ca": "a al amb aquest aquesta com de del dels el els en és era es està ha han hi i la les més no o on per però "
    "perquè que quin quina qui se seu seva si són sobre també un una uns d l",
    "et": "aga ei ja kas kes kui kuidas kus ma me mida mille millal miks mis nad nende ning oli olid on see selle "
    "seda ta te või",
    "lt": "apie ar arba bei bet bus buvo dėl ir iš į jis jos kad kaip kada kas kodėl ku kur kuri kurie kuris ne nuo "
    "o per prie su tai tik už yra",
    "ga": "a ag agus ach an ar as atá bhí cad cé conas dá do faoi go i ina is le mar na ní nó raibh sa seo sin tá",
    "eu": "da dira du duen dute edo eta ere ez hau hori izan nola non noiz ondoren zen zer zein ziren baina bat",
    "vi": "bạn bị các cái có của cho được đã để đến đó gì hay khi không là một nào này những như ở ra sẽ tại thì "
    "trong từ và vào về với",
    "ru": "а без бы был была были было быть в вам вас весь во вот все всех вы где да для до его ее её если есть еще "
    "ещё же за и из или им их к как какая какие какой каком каким каких какую ко когда которая которое "
    "которые который которых кто ли между мне может мы на над не нет ни но ну о об он она они оно от по под "
    "почему при с сколько со так также такой там то того тоже только том ты у уже чем что чтобы эта эти это "
    "этого этой этом этот я",
    "uk": "а або але без був була були було бути в вам вас ви від він вона вони воно все де для до є за з і із й "
    "його її їх на не ні нам нас ми по при про та так також тим то у ця це цей ці чи що щоб як яка яке який "
    "які якщо коли хто чому",
    "bg": "а без беше в във все да до е за и из или има к как какво когато която което които който кой към ли между "
    "на над не ни но о от по под при с са се си само така също те той това тя че как защо къде",
    "sr": "а али био била било да до за и из или и је као кад када како ко која које који која на не није о од по "
    "при са се су та тај то у уз што шта где зашто",
    "el": "από για δεν είναι ένα ένας έχει η ή θα και κάθε με μια μας μου να ο οι όπως όταν που ποια ποιο ποιος πως "
    "πώς πότε σε στη στην στις στο στον στους στα τα τη την της τι τις το τον του τους των ως γιατί",
    "ar": "أن أو إلى إن التي الذي الذين ان او الى بعد بين ثم حتى ذلك على عن في قد كان كانت كل كما لا لم له لها ما "
    "مع من متى هذا هذه هل هو هي و ومن أين كيف لماذا",
    "fa": "از است این آن با بر برای به بود تا چه چرا چگونه در را شد شده که کجا کی می و هم های یا یک",
    "hi": "और का की के को कि है हैं था थे थी में से पर यह वह इस उस एक ने भी नहीं तो ही कर हो क्या कौन कब कहाँ क्यों "
    "कैसे या",
    "hy": "եւ և է են էր մեջ որ որը ինչ ով երբ որտեղ ինչու ինչպես այս այդ այն մի համար հետ կամ",
    "ta": "ஒரு இது அது என்று மற்றும் என்ன எங்கே எப்போது யார் ஏன் எப்படி இந்த அந்த",
}  # fmt: skip
_WORD = re.compile(r"(?<!\d)[^\W\d_]+(?!\d)")  # no unit or name of a part: 75W has no Polish word
STOP_WORDS = {language: frozenset(words.split()) for language, words in _COMMON.items()}
# Where an accented letter is a letter of its own, folding would join different words.
KEEPS_MARKS = {"sv", "da", "no", "fi", "et", "tr", "hu", "vi", "lt", "ar", "fa", "hi", "ne", "ta", "yi"}
ELIDES = {"fr", "it", "ca", "ga"}  # l'école, dell'arte

_SCRIPTS = {
    "Latin": "a-zA-Z\u00c0-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Armenian": "\u0530-\u058f",
    "Devanagari": "\u0900-\u097f",
    "Tamil": "\u0b80-\u0bff",
    "Thai": "\u0e00-\u0e7f",
    "Hangul": "\uac00-\ud7a3",
    "Kana": "\u3040-\u30ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff",
}
_LETTERS = {script: re.compile(f"[{ranges}]") for script, ranges in _SCRIPTS.items()}
_SCRIPT_OF = {
    **dict.fromkeys(("ru", "uk", "bg", "sr"), "Cyrillic"),
    **dict.fromkeys(("ar", "fa"), "Arabic"),
    **{"el": "Greek", "hy": "Armenian", "hi": "Devanagari", "ne": "Devanagari", "ta": "Tamil", "yi": "Hebrew"},
    **{"th": "Thai", "ko": "Hangul", "ja": "Kana", "zh": "Han", "he": "Hebrew"},
}
# The language that a word is stemmed in where its document is in another script, or too short to tell.
_DEFAULT_OF = {
    "Latin": DEFAULT, "Cyrillic": "ru", "Greek": "el", "Arabic": "ar", "Hebrew": "he", "Armenian": "hy",
    "Devanagari": "hi", "Tamil": "ta", "Thai": "th", "Hangul": "ko", "Kana": "ja", "Han": "zh",
}  # fmt: skip


def language(text: str) -> str:
    """The language of a document, as an ISO 639-1 code; "" where no letter tells.

    By script first; languages that share a script are told apart by their commonest words. Text too short to tell has
    its script's default language.
    """
    if len(text) > 24_000:  # from three places, because a title page or a licence may be in another language
        middle = len(text) // 2
        text = f"{text[:8000]} {text[middle : middle + 8000]} {text[-8000:]}"
    if text.isascii():
        counts = {"Latin": sum(map(str.isalpha, text))}
    else:
        counts = {script: len(letters.findall(text)) for script, letters in _LETTERS.items()}
    # A character of these stands for several letters of an alphabet.
    for dense, letters in (("Han", 3), ("Kana", 2), ("Hangul", 2)):
        counts[dense] = letters * counts.get(dense, 0)
    script = max(counts, key=counts.__getitem__)
    if not counts[script]:
        return ""
    if script in ("Han", "Kana"):
        return "ja" if counts["Kana"] * 10 > counts["Han"] else "zh"
    likeness: dict[str, float] = {}
    tellers = _tellers(script)
    told = Counter(word for word in _WORD.findall(text.casefold()) if word in tellers)
    for word, count in told.items():
        for candidate in tellers[word]:
            # A word that several languages have tells less of each.
            likeness[candidate] = likeness.get(candidate, 0) + count / len(tellers[word])
    best, most = max(likeness.items(), key=lambda pair: pair[1], default=("", 0))
    # One word may be a name, or chance, however often a table repeats it.
    several = sum(best in tellers[word] for word in told) > 1
    return best if most > 1 and several else _DEFAULT_OF[script]


@cache
def _tellers(script: str) -> dict[str, tuple[str, ...]]:
    """Each common word of a script's languages, with those that have it."""
    found: dict[str, tuple[str, ...]] = {}
    for tongue, common in STOP_WORDS.items():
        for word in common if _SCRIPT_OF.get(tongue, "Latin") == script else ():
            found[word] = (*found.get(word, ()), tongue)
    return found


@cache
def stemmer(tongue: str) -> Stemmer.Stemmer | None:
    """Snowball's; None where it has none."""
    return Stemmer.Stemmer(_SNOWBALL[tongue], 0) if tongue in _SNOWBALL else None


def script_of(tongue: str) -> str:
    """What a language is written in."""
    return _SCRIPT_OF.get(tongue, "Latin")


def scripts(text: str) -> set[str]:
    """Those that have a letter in the text."""
    return {"Latin"} if text.isascii() else {name for name, letters in _LETTERS.items() if letters.search(text)}


def tongue_of(word: str, document: str) -> str:
    """The language that a word of a document is analysed in: the document's, or the default of the word's own script."""
    return _tongue_of(word[0], document)


@lru_cache(10_000)
def _tongue_of(first: str, document: str) -> str:
    if "a" <= first <= "z":
        return document if script_of(document) == "Latin" else DEFAULT
    for script, letters in _LETTERS.items():
        if letters.match(first):
            return document if script == script_of(document) else _DEFAULT_OF[script]
    return document
