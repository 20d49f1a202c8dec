package main

import (
	_ "github.com/starlight-delta/starlight/plugins/classic/plugin"
	_ "github.com/starlight-delta/starlight/plugins/content/plugin"
	_ "github.com/starlight-delta/starlight/plugins/engine/plugin"
	_ "github.com/starlight-delta/starlight/plugins/services/starlight/plugin"
	_ "github.com/starlight-delta/starlight/plugins/snapshots/starlight/plugin"
	_ "github.com/starlight-delta/starlight/plugins/transfer/plugin"
)
