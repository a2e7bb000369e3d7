from ddfast.cli import main

main()
