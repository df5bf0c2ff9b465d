"""What acts by itself: a run when changes arrive, a retraining when drift is sustained.

Edge-triggered, both of them: a cause asks for one run, however long it lasts and however often the daemon restarts.
They never import assets; a run is described by asset keys and by what started it (`headwater/trigger`).
"""
