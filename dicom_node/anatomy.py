"""What codes and words say about body part and view: the vocabulary of `dicom_node.admission`.

Every function answers None where it does not know: an unknown word is no evidence.
"""

from __future__ import annotations

import re
import unicodedata

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

CHEST, NOT_CHEST = "chest", "not_chest"
PA, AP, FRONTAL, LATERAL, NOT_FRONTAL = "PA", "AP", "frontal", "lateral", "not_frontal"

# SNOMED designators before SCT (PS3.16 8, PS3.3 8.2): the same SNOMED RT identifiers under three names.
_RETIRED_SCHEMES = frozenset({"SRT", "SNM3", "99SDM"})

# Regions that hold both lungs. 51185008 stood for the chest until CP-1962, as T-D3000 did before it.
_CHEST_CODES = {
    "816094009": "Chest",
    "51185008": "Thoracic structure",
    "43799004": "Thoracic cavity",
    "39607008": "Lung",
    "80891009": "Heart",
    "72410000": "Mediastinum",
    "416550000": "Chest and Abdomen",
    "416775004": "Chest, Abdomen and Pelvis",
    "417437006": "Neck and Chest",
    "416152001": "Neck, Chest and Abdomen",
    "416319003": "Neck, Chest, Abdomen and Pelvis",
}
_SILENT_CODES = {"38266002": "Entire body", "86598002": "Apex of Lung", "955009": "Bronchus", "44567001": "Trachea"}
# What CP-1962 renumbered besides: retired identifiers still lead to these.
_FORMER_REGION_CODES = {"113345001": "Abdomen", "416949008": "Abdomen and Pelvis", "12921003": "Pelvis"}

_VIEW_CODES = {
    "272479007": PA,
    "399348003": AP,
    "399033003": FRONTAL,
    "399067008": LATERAL,
    "399173006": LATERAL,  # left lateral
    "399198007": LATERAL,  # right lateral
    "399352003": LATERAL,  # lateral-medial
    "399260004": LATERAL,  # medial-lateral
    "30730003": LATERAL,  # sagittal
}
# An identifier that CID 4010 used for postero-anterior and pydicom's table lacks.
_FORMER_VIEW_CODES = {"R-10214": PA}

# PS3.16 Annex L, the terms for humans, and the spellings of devices older than it.
_CHEST_TERMS = frozenset(
    """CHEST THORAX LUNG LUNGS HEART MEDIASTINUM CHESTABDOMEN CHESTABDPELVIS NECKCHEST NECKCHESTABDOMEN
    NECKCHESTABDPELV NECKCHESTABDPELVIS PORTCHEST PCHEST CXR""".split()  # noqa: SIM905
)
_OTHER_TERMS = frozenset(
    """ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST BUTTOCK CALCANEUS CALF
    CAROTID CEREBELLUM CERVIX CHEEK CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM
    EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FIBULA FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK HIP
    HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE MANDIBLE MASTOID MAXILLA MOUTH NECK
    NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RIB SACRUM SCALP
    SCAPULA SCLERA SCROTUM SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH
    THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA WRIST
    ZYGOMA PHANTOM""".split()  # noqa: SIM905
)

# Words of descriptions, without accents. Not here: words that also mean something else in another language or in a
# description of a chest image (arms, back, head, face, main, brust, long).
_CHEST_WORDS = frozenset(
    """chest chst cxr pcxr thorax thorace torace torax toraks toracs borstkas brustkorb lung lungs lunge lungen lunges
    lungor lungerne longen pulmo pulmones pulmon pulmonary pulmonar pulmonaire pulmao pulmoes poumon poumons
    polmone polmoni klatka klatki pluca pluc płuca płuc plice hrudnik mellkas tudo keuhkot keuhko akciger gogus plamani
    легких легкие легкого клетки клетка θωρακα θωρακοσ θωραξ cardiopulmonary""".split()  # noqa: SIM905
)
_CHEST_STEMS = ("thorax", "lungen", "rontgenthorax", "roentgenthorax")  # German and Dutch compounds
_CHEST_SIGNS = ("胸部", "胸片", "肺", "흉부")  # scripts without spaces
_OTHER_WORDS = frozenset(
    """abdomen abdominal abd kub bauch addome ventre abdome buik brzuch
    pelvis pelvic becken bassin pelvi bekken bacino bacia miednica
    hip hips hufte huften hanche hanches cadera caderas anca anche quadril heup biodro
    knee knees knie genou genoux rodilla rodillas ginocchio ginocchia joelho kolano patella
    ankle ankles sprunggelenk cheville tobillo caviglia tornozelo enkel
    foot feet fuss pied pieds piede piedi voet stopa calcaneus heel toe toes zehe
    tibia fibula femur leg legs unterschenkel oberschenkel thigh jambe pierna gamba perna
    hand hands mano mains mao dlon finger fingers doigt dedo dito thumb daumen pouce
    wrist wrists handgelenk poignet muneca polso punho pols nadgarstek
    elbow elbows ellbogen ellenbogen coude codo gomito cotovelo elleboog lokiec
    forearm unterarm humerus oberarm radius ulna
    shoulder shoulders schulter epaule hombro spalla ombro schouder bark clavicle clavicula klavikula scapula
    extremity extremities extremitat extremitaten extremidad extremite limb limbs
    rib ribs rippen costillas cotes coste sternum
    spine spinal lumbar cervical lspine tspine cspine lws bws hws wirbelsaule lendenwirbelsaule brustwirbelsaule
    halswirbelsaule rachis columna colonna coluna sacrum coccyx vertebral scoliosis
    skull cranium cranial schadel crane craneo cranio sinus sinuses nnh orbit orbits orbita mandible mandibula maxilla
    nasal dental teeth panoramic opg orthopantomogram kopf
    breast mammo mammography mammographie mammografia mamma mama
    neck hals cuello cou""".split()  # noqa: SIM905
)
_OTHER_SIGNS = ("腹部", "骨盤", "骨盆", "脊椎", "頭部", "膝", "복부")

_PA_WORDS = frozenset({"PA", "POSTEROANTERIOR"})
_AP_WORDS = frozenset({"AP", "ANTEROPOSTERIOR"})
_FRONTAL_WORDS = frozenset({"FRONTAL", "FRONT", "FACE", "FRONTALE"})
_LATERAL_WORDS = frozenset(
    """LATERAL LAT LATERALE LATERALIS LATERO LL RL LLAT RLAT LTLAT RTLAT LATL LATR SEITLICH PROFIL PROFILE PERFIL
    LATEROLATERAL LATEROLATERALE""".split()  # noqa: SIM905
)
# PS3.3 C.8.11.5.1.1 and C.8.1.3: lateral decubitus and lateral oblique; then the cardiac obliques and the words.
_OBLIQUE_WORDS = frozenset(
    """RLD LLD RLO LLO RAO LAO RPO LPO OBL OBLIQUE OBLIQUA OBLICUA OBLIQUO SCHRAG SCHRAEG""".split()  # noqa: SIM905
)
# Lying on one side in English; the Romance languages also say it of lying on the back, which is a plain AP.
_DECUBITUS_WORDS = frozenset({"DECUBITUS", "DECUB", "DECUBITO"})
_SUPINE_WORDS = frozenset({"DORSAL", "DORSALE", "SUPINE", "SUPINO", "SUPIN", "VENTRAL", "PRONO"})


def body_part_of_code(value: str, scheme: str) -> str | None:
    """CHEST or NOT_CHEST for a code of Anatomic Region Sequence."""
    code = _snomed(value, scheme)
    if code is None:
        return None
    if _is_one_of(code, _CHEST_CODES):
        return CHEST
    if _is_one_of(code, _SILENT_CODES):
        return None
    return NOT_CHEST if _is_one_of(code, _REGION_CODES) else None


def view_of_code(value: str, scheme: str) -> str | None:
    """PA, AP, FRONTAL, LATERAL or NOT_FRONTAL for a code of View Code Sequence (CID 4010)."""
    code = _snomed(value, scheme)
    if code is None:
        return None
    if code.scheme_designator == "SRT" and value in _FORMER_VIEW_CODES:
        return _FORMER_VIEW_CODES[value]
    for number, view in _VIEW_CODES.items():
        if code == Code(number, "SCT", ""):
            return view
    return NOT_FRONTAL if _is_one_of(code, _CID_4010) else None


def body_part_of_term(text: str) -> str | None:
    """CHEST or NOT_CHEST for Body Part Examined: a defined term whatever its case and spacing, else its words."""
    term = re.sub(r"[\W_]", "", text.upper())
    if term in _CHEST_TERMS:
        return CHEST
    if term in _OTHER_TERMS:
        return NOT_CHEST
    return body_part_of_description(text)


def body_part_of_description(text: str) -> str | None:
    """CHEST or NOT_CHEST for free text; chest wins where the text names it and something else."""
    words = _words(text)
    if (
        words & _CHEST_WORDS
        or any(word.startswith(_CHEST_STEMS) for word in words)
        or any(sign in text for sign in _CHEST_SIGNS)
    ):
        return CHEST
    if words & _OTHER_WORDS or any(sign in text for sign in _OTHER_SIGNS):
        return NOT_CHEST
    return None


def view_of_term(text: str) -> str | None:
    """PA, AP, FRONTAL, LATERAL or NOT_FRONTAL for View Position; None where it names frontal and lateral."""
    words = {word.upper() for word in _words(text)} | {re.sub(r"[\W\d_]", "", text.upper())}
    lateral = bool(words & _LATERAL_WORDS)
    if words & _OBLIQUE_WORDS or _is_on_one_side(words, lateral=lateral):
        return NOT_FRONTAL
    pa, ap = bool(words & _PA_WORDS), bool(words & _AP_WORDS)
    frontal = pa or ap or bool(words & _FRONTAL_WORDS)
    if lateral:
        return None if frontal else LATERAL
    if pa != ap:
        return PA if pa else AP
    return FRONTAL if frontal else None


def view_of_orientation(row: str, column: str) -> str | None:
    """FRONTAL, LATERAL or NOT_FRONTAL for the two values of Patient Orientation (PS3.3 C.7.6.1.1.1).

    The first letter of a direction is its main one; an image may lie on its side.
    """
    if not all(re.fullmatch(r"[LRAPHF]{1,3}", direction) for direction in (row, column)):
        return None
    axes = {next(axis for axis in ("LR", "AP", "HF") if direction[0] in axis) for direction in (row, column)}
    return {
        frozenset({"LR", "HF"}): FRONTAL,
        frozenset({"AP", "HF"}): LATERAL,
        frozenset({"LR", "AP"}): NOT_FRONTAL,
    }.get(frozenset(axes))


def _is_on_one_side(words: set[str], *, lateral: bool) -> bool:
    if not words & _DECUBITUS_WORDS or words & _SUPINE_WORDS:
        return False
    return lateral or "DECUBITO" not in words


def _words(text: str) -> set[str]:
    """Words of letters only, small, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return set(re.findall(r"[^\W\d_]+", plain))


def _snomed(value: str, scheme: str) -> Code | None:
    if scheme in _RETIRED_SCHEMES:
        return Code(value, "SRT", "")
    return Code(value, "SCT", "") if scheme == "SCT" else None


def _is_one_of(code: Code, numbers: dict[str, str]) -> bool:
    # pydicom's equality knows the retired identifiers of the SCT numbers.
    return any(code == Code(number, "SCT", "") for number in numbers)


def _members(*names: str) -> dict[str, str]:
    groups = [getattr(codes, name) for name in names]
    concepts = [getattr(group, keyword) for group in groups for keyword in group.dir()]
    return {concept.value: concept.meaning for concept in concepts if concept.scheme_designator == "SCT"}


_CID_4010 = _members("cid4010")
_REGION_CODES = _members("cid4009", "cid4031") | _FORMER_REGION_CODES
