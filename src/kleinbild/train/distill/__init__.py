"""Distillation: a base model, as it is or customised, to one that needs four steps and no guidance.

samples (what the teacher is asked) → trajectory (stage 1, over rollouts) → polish (stage 2, if wanted) → guards → result;
`loop` runs it. Teacher and student are the same kind of thing, a `field.Velocity`.
"""
