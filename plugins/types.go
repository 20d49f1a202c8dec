// Package plugins names what Starlight registers with containerd: plugin types,
// plugin IDs and label keys. It holds constants only, so that everything may
// import it and it imports nothing of ours.
package plugins

import "github.com/containerd/plugin"

// EnginePlugin is the type of the plugin that owns all lazy state of the node.
// It is a type of its own, and requires nothing, so that the content plugin
// (on which metadata depends) can depend on it without a cycle.
const EnginePlugin plugin.Type = "io.containerd.starlight.v1"

const (
	// EngineID is the ID of the one EnginePlugin; its TOML section is
	// [plugins.'io.containerd.starlight.v1.engine'].
	EngineID = "engine"

	// SnapshotterName is the ID of the snapshotter.
	SnapshotterName = "starlight"

	// ClassicID is the ID of the plugin for clients that do not use the transfer
	// service.
	ClassicID = "starlight-classic"

	// ServiceID is the ID of the gRPC service on containerd's socket.
	ServiceID = "starlight"
)

const (
	// LabelTargetSnapshot is set by unpackers on Prepare: the chain ID that the
	// prepared snapshot will be committed as (the remote snapshotter protocol).
	LabelTargetSnapshot = "containerd.io/snapshot.ref"

	// LabelChain marks a committed snapshot whose content is the lazy tree of
	// the chain ID that is its value, and not a directory of its own.
	LabelChain = "containerd.io/snapshot/starlight.chain"

	// LabelOptimizer on the snapshot of a container says whether its start is
	// traced: "true", "false", or the name of the group that it belongs to.
	LabelOptimizer = "containerd.io/snapshot/starlight.optimizer"

	// LabelOptimizerOf is the same as a label of a pod, or of an image in containerd's
	// image store, for all of its containers. The pod's counts more.
	LabelOptimizerOf = "starlight.containerd.io/optimizer"
)

// Exports of the engine plugin, for the plugins that build on it. They are set
// even if the engine could not start.
const (
	// ExportRoot is the directory shared by engine and snapshotter.
	ExportRoot = "root"

	// ExportDefaultSnapshotter is "true" if starlight is the snapshotter of
	// clients that name none.
	ExportDefaultSnapshotter = "default_snapshotter"
)
