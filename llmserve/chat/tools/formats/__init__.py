"""How models write calls and thoughts: a file for each family, with the marks of its templates."""
