"""Request to pixels. `kleinbild.engine.pipeline` is the recipe; `kleinbild.engine.runtime.Engine` runs it."""
