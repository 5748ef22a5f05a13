"""Models whose parameters lie in shards over several processes.

For the time of an outer step such a model is made to look like a plain one, in place, and is put
back exactly. Nothing here imports the modules of torch that shard.
"""

from reweight._sharded.kinds import is_sharded, refuse_other_engines
from reweight._sharded.local import local_row
from reweight._sharded.shards import Shards, in_shards
from reweight._sharded.stand_ins import StandIns

__all__ = [
    "Shards",
    "StandIns",
    "in_shards",
    "is_sharded",
    "local_row",
    "refuse_other_engines",
]
