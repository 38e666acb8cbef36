"""Allow-lists for sources: pictures of their own folder, and formulas of known commands.

The files of a report may have been written by others. A picture is shown if it is within the folder
of its source and its bytes are those of a picture. A formula is set if all its commands are on the
list below, since TeX can read files, write them and run for ever.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from PIL import Image

__all__ = ["PictureError", "check_formula", "check_picture"]


class PictureError(ValueError):
    """A file is no picture; the message is a clause."""


# --- pictures -------------------------------------------------------------------------------------


def check_picture(path: Path) -> None:
    """Refuses a file that is no intact PNG, JPEG or SVG, whatever its name.

    Raises:
        PictureError: with the reason.
    """
    try:
        head = path.read_bytes()[:4096]
        if path.suffix.lower() == ".svg":
            text = path.read_text(encoding="utf-8")
            if "<svg" not in text[:4096] or "<!ENTITY" in text:
                raise PictureError("no SVG")
            return
        if not head.startswith((b"\x89PNG", b"\xff\xd8\xff")):
            raise PictureError("no PNG, JPEG or SVG")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Decompression bombs.
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                picture.load()
    except PictureError:
        raise
    except Exception as error:  # A damaged picture fails in many ways.
        raise PictureError("damaged or cannot be read") from error


# --- formulas -------------------------------------------------------------------------------------


_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "pi varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta "
    "Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar imath jmath Re Im aleph wp"
)
_OPERATORS = (
    "arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker lg lim liminf "
    "limsup ln log max min Pr sec sin sinh sup tan tanh sum prod coprod int iint iiint oint bigcap "
    "bigcup bigsqcup bigvee bigwedge bigodot bigoplus bigotimes biguplus operatorname "
    "operatorname* bmod pmod mod limits nolimits displaylimits"
)
_RELATIONS = (
    "le leq leqslant ge geq geqslant ne neq equiv sim simeq approx cong propto ll gg in notin ni "
    "subset supset subseteq supseteq mid nmid parallel perp prec succ preceq succeq models vdash "
    "dashv asymp doteq triangleq coloneqq not lt gt"
)
_SYMBOLS = (
    "pm mp times div cdot circ bullet ast star oplus ominus otimes oslash odot cap cup setminus "
    "wedge vee land lor lnot neg infty nabla partial forall exists nexists emptyset varnothing top "
    "bot angle triangle square Box diamond dagger ddagger prime backslash dots ldots cdots vdots "
    "ddots dotsc dotsb colon checkmark"
)
_ARROWS = (
    "to gets mapsto leftarrow rightarrow leftrightarrow Leftarrow Rightarrow Leftrightarrow "
    "longleftarrow longrightarrow longleftrightarrow Longleftarrow Longrightarrow "
    "Longleftrightarrow longmapsto hookrightarrow uparrow downarrow updownarrow iff implies "
    "impliedby xrightarrow xleftarrow"
)
_SHAPES = (
    "frac dfrac tfrac cfrac binom dbinom tbinom sqrt stackrel overset underset substack overline "
    "underline overbrace underbrace overrightarrow overleftarrow hat widehat tilde widetilde bar "
    "vec dot ddot acute grave breve check mathring boxed cancel phantom hphantom vphantom smash"
)
_FONTS = (
    "mathbb mathbf mathcal mathfrak mathit mathrm mathscr mathsf mathtt boldsymbol bm text textbf "
    "textit textrm textsf texttt textnormal displaystyle textstyle scriptstyle scriptscriptstyle"
)
_DELIMITERS = (
    "left right middle big Big bigg Bigg bigl bigr bigm Bigl Bigr Bigm biggl biggr Biggl Biggr "
    "langle rangle lfloor rfloor lceil rceil lvert rvert lVert rVert vert Vert lbrace rbrace "
    "lbrack rbrack"
)
_LAYOUT = "begin end quad qquad enspace thinspace tag tag* label nonumber notag hline"
_SIGNS = {*",;:!> \\{}|%&#_$", "\n"}
_COMMANDS = {
    word
    for words in (
        *(_GREEK, _OPERATORS, _RELATIONS, _SYMBOLS, _ARROWS),
        *(_SHAPES, _FONTS, _DELIMITERS, _LAYOUT),
    )
    for word in words.split()
} | _SIGNS
_NAMED = (
    "align align* aligned alignat alignedat gather gather* gathered equation equation* multline "
    "multline* split cases dcases array matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix "
    "smallmatrix subarray"
)
_ENVIRONMENTS = set(_NAMED.split())


def check_formula(formula: str) -> str:
    """The first command in a formula that is not allowed; empty if all are."""
    if "^^" in formula:  # TeX's other way to write any character.
        return "^^"
    for command in re.findall(r"\\([a-zA-Z]+\*?|.|\Z)", formula, flags=re.DOTALL):
        if command not in _COMMANDS and command.removesuffix("*") not in _COMMANDS:
            return f"\\{command}"
    for _, name in re.findall(r"\\(begin|end)\s*\{([^{}]*)\}", formula):
        if name not in _ENVIRONMENTS:
            return f"\\begin{{{name}}}"
    bare = re.search(r"\\(?:begin|end)(?!\s*\{[^{}]*\})", formula)
    return bare.group() if bare else ""
