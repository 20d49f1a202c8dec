module corpus.test/pause

go 1.25
