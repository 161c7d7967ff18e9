from clipgen_core.cli import main

main()
