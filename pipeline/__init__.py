"""What a person can ask for, and in which order it happens: commands, configuration, plan, execution."""
