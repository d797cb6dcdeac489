"""One file a command: the click command beside the function it calls; heavy imports happen inside."""
