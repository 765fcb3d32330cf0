"""Mapillary Vistas' class names of both releases, and which of Cityscapes' 19 evaluated classes each belongs to.

For v1.2 the table is the one that work on both data sets commonly uses: kerbs and pedestrian areas are sidewalk,
everything that is driven on and every marking is road, bridges and tunnels are building, guard rails are fence, the
frame of a sign belongs to the sign; what Cityscapes does not evaluate (backs of signs, caravans, trailers, billboards)
is void. v2.0 splits those classes; its parts follow the same rules, which is "inferred".
"""

from __future__ import annotations

_ROAD = """
construction--flat--bike-lane construction--flat--crosswalk-plain construction--flat--driveway
construction--flat--parking construction--flat--parking-aisle construction--flat--rail-track construction--flat--road
construction--flat--road-shoulder construction--flat--service-lane
marking--crosswalk-zebra marking--general
marking--continuous--dashed marking--continuous--solid marking--continuous--zigzag
marking--discrete--ambiguous marking--discrete--arrow--left marking--discrete--arrow--other
marking--discrete--arrow--right marking--discrete--arrow--split-left-or-straight
marking--discrete--arrow--split-right-or-straight marking--discrete--arrow--straight
marking--discrete--crosswalk-zebra marking--discrete--give-way-row marking--discrete--give-way-single
marking--discrete--hatched--chevron marking--discrete--hatched--diagonal marking--discrete--other-marking
marking--discrete--stop-line marking--discrete--symbol--bicycle marking--discrete--symbol--other
marking--discrete--text
marking-only--continuous--dashed marking-only--discrete--crosswalk-zebra marking-only--discrete--other-marking
marking-only--discrete--text
"""

_TRAFFIC_LIGHT = """
object--traffic-light
object--traffic-light--cyclists object--traffic-light--general-horizontal object--traffic-light--general-single
object--traffic-light--general-upright object--traffic-light--other object--traffic-light--pedestrians
"""

_TRAFFIC_SIGN = """
object--support--traffic-sign-frame object--traffic-sign--front
object--traffic-sign--direction-front object--traffic-sign--information-parking object--traffic-sign--temporary-front
"""

_VOID = """
animal--bird animal--ground-animal
construction--barrier--ambiguous construction--barrier--concrete-block construction--barrier--other-barrier
construction--barrier--road-median construction--barrier--road-side construction--barrier--separator
construction--barrier--temporary
nature--mountain nature--water
object--banner object--bench object--bike-rack object--billboard object--catch-basin object--cctv-camera
object--fire-hydrant object--junction-box object--mailbox object--manhole object--parking-meter object--phone-booth
object--pothole object--street-light object--support--pole-group object--traffic-cone object--trash-can
object--water-valve
object--sign--advertisement object--sign--ambiguous object--sign--back object--sign--information object--sign--other
object--sign--store
object--traffic-sign--ambiguous object--traffic-sign--back object--traffic-sign--direction-back
object--traffic-sign--temporary-back
object--vehicle--boat object--vehicle--caravan object--vehicle--other-vehicle object--vehicle--trailer
object--vehicle--vehicle-group object--vehicle--wheeled-slow
void--car-mount void--dynamic void--ego-vehicle void--ground void--static void--unlabeled
"""

_BY_CLASS: dict[str | None, str] = {
    "road": _ROAD,
    "sidewalk": """construction--barrier--curb construction--flat--curb-cut construction--flat--pedestrian-area
        construction--flat--sidewalk construction--flat--traffic-island""",
    "building": """construction--structure--bridge construction--structure--building construction--structure--garage
        construction--structure--tunnel""",
    "wall": "construction--barrier--wall",
    "fence": "construction--barrier--fence construction--barrier--guard-rail",
    "pole": "object--support--pole object--support--utility-pole",
    "traffic light": _TRAFFIC_LIGHT,
    "traffic sign": _TRAFFIC_SIGN,
    "vegetation": "nature--vegetation",
    "terrain": "nature--sand nature--snow nature--terrain",
    "sky": "nature--sky",
    "person": "human--person human--person--individual human--person--person-group",
    "rider": "human--rider--bicyclist human--rider--motorcyclist human--rider--other-rider",
    "car": "object--vehicle--car",
    "truck": "object--vehicle--truck",
    "bus": "object--vehicle--bus",
    "train": "object--vehicle--on-rails",
    "motorcycle": "object--vehicle--motorcycle",
    "bicycle": "object--vehicle--bicycle",
    None: _VOID,
}

CLASSES: dict[str, str | None] = {name: mapped for mapped, names in _BY_CLASS.items() for name in names.split()}
"""Class name in `config_v1.2.json` or `config_v2.0.json` -> Cityscapes class, None = void."""
