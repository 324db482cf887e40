"""KV states kept between runs: of system prompts, and of conversations that were saved. A session
restores before it computes, and stores when it is idle."""

from boardfit.edge.states.place import model_identity, open_store
from boardfit.edge.states.store import Restored, StateStore

__all__ = ["Restored", "StateStore", "model_identity", "open_store"]
