package plugin

import (
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/platforms"

	"github.com/starlight-delta/starlight/plugins"
)

// Config is the section [plugins.'io.containerd.transfer.v1.local'], with the keys
// of containerd's own plugin, which this one replaces.
type Config struct {
	// MaxConcurrentDownloads is the number of downloads at a time in a pull.
	MaxConcurrentDownloads int `toml:"max_concurrent_downloads"`

	// ConcurrentLayerFetchBuffer is the size in bytes of the chunks in which large
	// layers are downloaded in parallel. Up to 512 they are not.
	ConcurrentLayerFetchBuffer int `toml:"concurrent_layer_fetch_buffer"`

	// MaxConcurrentUploadedLayers is the number of uploads at a time in a push.
	MaxConcurrentUploadedLayers int `toml:"max_concurrent_uploaded_layers"`

	// CheckPlatformSupported matches platforms exactly, and not only their OS.
	CheckPlatformSupported bool `toml:"check_platform_supported"`

	// UnpackConfiguration lists what images can be unpacked into. Not set: the
	// default snapshotter, starlight, and EROFS for native EROFS images.
	UnpackConfiguration []Unpack `toml:"unpack_config,omitempty"`

	// RegistryConfigPath is the directory of the configuration of registries.
	RegistryConfigPath string `toml:"config_path"`

	// MaxConcurrentUnpacks is the number of layers unpacked at a time.
	MaxConcurrentUnpacks int `toml:"max_concurrent_unpacks"`
}

// Unpack is one entry of unpack_config.
type Unpack struct {
	// Platform of the images.
	Platform string `toml:"platform"`
	// Snapshotter to unpack into.
	Snapshotter string `toml:"snapshotter"`
	// Differ is the diff plugin that applies layers. Empty: one that fits.
	Differ string `toml:"differ"`
	// ConfigType is the media type of the configs of the images.
	ConfigType string `toml:"config_type"`
	// LayerTypes are the media types of their layers.
	LayerTypes []string `toml:"layer_types"`
	// Optional skips the entry if its plugins did not load.
	Optional bool `toml:"optional"`
}

// Default is the configuration without a section.
func Default() *Config {
	return &Config{
		MaxConcurrentDownloads:      3,
		MaxConcurrentUploadedLayers: 3,
		MaxConcurrentUnpacks:        1,
	}
}

// defaultUnpack is unpack_config where it is not set: containerd's, and starlight.
func defaultUnpack() []Unpack {
	host := platforms.DefaultSpec()
	erofs := host
	erofs.OSFeatures = []string{"erofs"}
	return []Unpack{
		{Platform: platforms.Format(host), Snapshotter: defaults.DefaultSnapshotter, Differ: defaults.DefaultDiffer},
		// Optional: a node on which overlayfs does not work pulls into others as before.
		{Platform: platforms.Format(host), Snapshotter: plugins.SnapshotterName, Differ: defaults.DefaultDiffer, Optional: true},
		{Platform: platforms.FormatAll(erofs), Snapshotter: "erofs", Differ: "erofs", Optional: true},
	}
}
