"""Tells Chinese text from other bytes that happen to decode as GB18030: a naive Bayes test over decoded characters.

GB18030 gives a meaning to nearly every pair of high bytes, so that strict decoding alone proves little: Latin-1 French,
Big5, Shift-JIS and EUC-KR all get through now and then. But they land on rare characters, while Chinese text, modern
or classical, lands on common ones. Knows nothing of files.
"""

import math
import unicodedata

_COMMON = frozenset(
    # Function words and frequent characters of modern Chinese.
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事"
    "成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此"
    "已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代"
    "内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安"
    "少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光"
    "放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共确传师观清今切院让识候带导争运笔"
    # Classical Chinese.
    "曰吾汝乃若夫彼矣焉哉乎兮孰岂莫弗勿故是盖惟焉其之乾坤卦爻阴阳吉凶贞亨元悔吝君臣士民礼仁智善恶圣贤兵食死生六七八九百千"
    # The same in traditional writing, where it differs.
    "這個們來時會對過發後說國學種當沒動還進樣開實軍無長機經與關點業將兩間問東聲論處義幾認條係氣題爾變總電數報結應戰"
    "頭體見產門給員解務場計統區隊決馬書聽卻達強難權記書觀導運傳確術領覺讓識設規萬邊張據類師陽陰貞聖賢禮惡"
)
_PUNCTUATION = frozenset("，。、；：？！“”‘’《》（）【】「」『』〈〉〔〕…—·～\u3000")
_PRIOR = 1.0
"""In nats. GB18030 is asked first because among texts that aren't UTF-8 and reach us it is the likeliest."""
_WEIGHTS = {
    "common": 2.0,
    "level1": -0.25,
    "level2": -1.2,
    "rare": -2.5,
    "foreign": -2.0,
    "private": -6.0,
    "other": -1.0,
}
"""log P(class | Chinese) / P(class | another encoding read as GB18030), in nats, rounded.

Estimated by hand: six of ten characters of Chinese text are in the table and about one of twelve of misread text;
half of misread text lies outside GB2312, hardly any Chinese text does.
"""
_FOREIGN = ("HIRAGANA", "KATAKANA", "CYRILLIC", "GREEK", "BOPOMOFO", "BOX DRAWINGS", "HANGUL")
_ENOUGH = 20_000


class ChineseEvidence:
    """Collects evidence over the first 20,000 characters beyond ASCII of a text decoded as GB18030."""

    def __init__(self) -> None:
        self._log_odds = _PRIOR
        self._seen = 0

    def add(self, text: str) -> None:
        if self._seen >= _ENOUGH or text.isascii():
            return
        beyond = [c for c in text if c > "\x7f"][: _ENOUGH - self._seen]
        self._seen += len(beyond)
        self._log_odds += sum(_WEIGHTS[_classify(c)] for c in beyond)

    @property
    def confidence(self) -> float:
        """The posterior probability that the text is Chinese in GB18030."""
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, self._log_odds))))


def _classify(character: str) -> str:
    if character in _COMMON or character in _PUNCTUATION or "\uff01" <= character <= "\uff5e":
        return "common"
    if unicodedata.category(character) in {"Co", "Cn", "Cc"}:
        return "private"
    if "\u3400" <= character <= "\u9fff":
        return _hanzi_class(character)
    return "foreign" if unicodedata.name(character, "").startswith(_FOREIGN) else "other"


def _hanzi_class(character: str) -> str:
    """By GB2312's zones: level 1 (rows 16 to 55) holds the 3,755 frequent characters, level 2 the next 3,008."""
    code = character.encode("gb18030")
    if len(code) != 2 or code[0] < 0xB0 or code[1] < 0xA1:
        return "rare"
    return "level1" if code[0] <= 0xD7 else "level2"
