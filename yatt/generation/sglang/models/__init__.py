"""No models of our own. SGLang imports its two hundred files of models at once, unless a package of others is named to
it, as the environment does with this one; `scheduler.build` then imports the one that is needed."""
