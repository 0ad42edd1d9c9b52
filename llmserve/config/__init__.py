"""models.toml: its types, how it is read and edited. Opens no model and no socket."""
