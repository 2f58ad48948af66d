"""The page of all results: `build` gathers what stages wrote, `render` shows it."""
