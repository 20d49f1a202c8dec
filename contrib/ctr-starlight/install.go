package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aymanbagabas/go-udiff"
	"github.com/urfave/cli/v3"

	"github.com/starlight-delta/starlight/contrib/ctr-starlight/internal/confedit"
	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	k3sTemplate      = "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl"
)

func configFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", HideDefault: true, Usage: "configuration of containerd, or template of k3s (*.tmpl) (default: " + containerdConfig + ")"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"},
		&cli.BoolFlag{Name: "dry-run", Usage: "show what would change, and change nothing"},
	}
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "put a proxy, and the snapshotter of CRI, into the configuration of containerd",
		Description: "Shows the difference and asks before it writes. All other lines stay as they are; the file as it was is kept\n" +
			"beside it. What was written is marked, and uninstall takes it out. containerd reads it when it starts again.",
		Flags: append(configFlags(),
			&cli.StringFlag{Name: "proxy", Usage: "address of a proxy, http://host:port or https://host"},
			&cli.StringSliceFlag{Name: "registry", Usage: "pattern of the registries that it serves (default: all)", HideDefault: true},
			&cli.StringFlag{Name: "ca", Usage: "file of the authorities of its certificate"},
			&cli.StringFlag{Name: "cert", Usage: "file of the client certificate to show"},
			&cli.StringFlag{Name: "key", Usage: "file of its key"},
			&cli.StringFlag{Name: "token-file", Usage: "file of the token to show"},
			&cli.BoolFlag{Name: "default-snapshotter", Usage: "pull as deltas where no snapshotter is named"},
			&cli.BoolFlag{Name: "cri", Usage: "have Kubernetes use the snapshotter starlight"},
		),
		Action: install,
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:        "uninstall",
		Usage:       "take out of the configuration what install put into it",
		Description: "Shows the difference and asks before it writes. The file as it was is kept beside it.",
		Flags:       configFlags(),
		Action:      uninstall,
	}
}

func install(_ context.Context, c *cli.Command) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	change := confedit.Change{CRI: c.Bool("cri")}
	if c.Bool("default-snapshotter") {
		change.Engine = "  default_snapshotter = true\n"
	}
	if c.String("proxy") != "" {
		r := &api.AddProxyRequest{
			Address: c.String("proxy"), Registries: c.StringSlice("registry"),
			Ca: c.String("ca"), Cert: c.String("cert"), Key: c.String("key"), TokenFile: c.String("token-file"),
		}
		if err := checkProxy(r); err != nil {
			return err
		}
		change.Engine += proxyTOML(r)
	}
	if change.Engine == "" && !change.CRI {
		return errors.New("there is nothing to install: give --proxy http://HOST:8090, see ctr-starlight install --help")
	}
	f, err := readConfig(c)
	if err != nil {
		return err
	}
	change.Template, change.New = f.template(), f.info == nil
	out, err := confedit.Install(f.text, change)
	switch {
	case errors.Is(err, confedit.ErrInstalled):
		return fmt.Errorf("%s: %w: ctr-starlight uninstall first", f.name, err)
	case err != nil:
		return fmt.Errorf("%s: %w", f.name, err)
	}
	return f.change(c, out, false, f.restart()+", then ctr-starlight doctor")
}

// checkProxy finds what containerd would refuse when it starts.
func checkProxy(r *api.AddProxyRequest) error {
	u, err := url.Parse(r.GetAddress())
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return fmt.Errorf("--proxy %q is not http://host:port or https://host", r.GetAddress())
	}
	for _, p := range r.GetRegistries() {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("--registry %q: %w", p, err)
		}
	}
	for _, f := range []struct{ flag, name string }{{"ca", r.GetCa()}, {"cert", r.GetCert()}, {"key", r.GetKey()}, {"token-file", r.GetTokenFile()}} {
		switch {
		case f.name == "":
		case !filepath.IsAbs(f.name):
			return fmt.Errorf("--%s %q is not absolute", f.flag, f.name)
		case u.Scheme == "http" && f.flag != "token-file":
			return fmt.Errorf("--%s needs an https address", f.flag)
		}
	}
	if r.GetKey() != "" && r.GetCert() == "" {
		return errors.New("--key needs --cert")
	}
	return nil
}

func uninstall(_ context.Context, c *cli.Command) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	f, err := readConfig(c)
	if err != nil {
		return err
	}
	if f.info == nil {
		return fmt.Errorf("%s is not there: --config names another file", f.name)
	}
	out, remove, err := confedit.Uninstall(f.text)
	if err != nil {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if bytes.Equal(out, f.text) {
		return fmt.Errorf("%s has no lines of ctr-starlight install: what was written by hand is taken out by hand", f.name)
	}
	return f.change(c, out, remove, f.restart())
}

// configFile is a configuration as it was read.
type configFile struct {
	name string // what it is called
	path string // where it is, links followed
	text []byte
	info fs.FileInfo // nil: it is not there
}

func readConfig(c *cli.Command) (*configFile, error) {
	f := &configFile{name: c.String("config")}
	if f.name == "" {
		f.name = containerdConfig
		if _, err := os.Stat(f.name); err != nil {
			if _, err := os.Stat(filepath.Dir(k3sTemplate)); err == nil {
				f.name = k3sTemplate
			}
		}
	}
	var err error
	if f.path, err = filepath.EvalSymlinks(f.name); errors.Is(err, fs.ErrNotExist) {
		f.path = f.name
		return f, nil
	} else if err != nil {
		return nil, err
	}
	if f.info, err = os.Stat(f.path); err != nil {
		return nil, err
	}
	if !f.info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", f.name)
	}
	f.text, err = os.ReadFile(f.path)
	return f, err
}

func (f *configFile) template() bool { return strings.HasSuffix(f.name, ".tmpl") }

// restart is how the configuration comes into force.
func (f *configFile) restart() string {
	if f.template() {
		return "systemctl restart k3s"
	}
	return "systemctl restart containerd"
}

// change shows the difference, asks, and writes.
func (f *configFile) change(c *cli.Command, text []byte, remove bool, next string) error {
	out := c.Root().Writer
	before, after := f.name, f.name
	if f.info == nil {
		before = os.DevNull
	}
	if remove {
		after = os.DevNull
	}
	if bytes.Equal(text, f.text) {
		_, err := fmt.Fprintf(out, "%s is what it should be\n", f.name)
		return err
	}
	if _, err := fmt.Fprint(out, udiff.Unified(before, after, string(f.text), string(text))); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return nil
	}
	if ok, err := confirm(c, "write "+f.name+"?"); err != nil || !ok {
		return err
	}
	backup, err := f.write(text, remove)
	if err != nil {
		return err
	}
	if backup != "" {
		if _, err := fmt.Fprintf(out, "the file as it was is %s\n", backup); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "next: %s\n", next)
	return err
}

// confirm asks, unless --yes was given.
func confirm(c *cli.Command, question string) (bool, error) {
	if c.Bool("yes") {
		return true, nil
	}
	if _, err := fmt.Fprintf(c.Root().ErrWriter, "%s [y/N] ", question); err != nil {
		return false, err
	}
	line, err := bufio.NewReader(c.Root().Reader).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true, nil
	}
	return false, errors.New("nothing was changed: it was not confirmed (--yes does not ask)")
}

// write replaces the file in one step, with its mode and owner, and returns where the old
// one is kept.
func (f *configFile) write(text []byte, remove bool) (backup string, err error) {
	if now, err := os.ReadFile(f.path); err == nil && (f.info == nil || !bytes.Equal(now, f.text)) {
		return "", fmt.Errorf("%s was changed by somebody else meanwhile: try again", f.name)
	}
	if f.info != nil {
		backup = f.path + time.Now().UTC().Format(".20060102T150405.000Z") + ".bak"
		if err := f.put(backup, f.text, os.O_EXCL); err != nil {
			return "", fmt.Errorf("keep the file as it was: %w", err)
		}
	} else if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return "", err
	}
	if remove {
		err = os.Remove(f.path)
	} else {
		temp := f.path + ".new"
		if err = f.put(temp, text, os.O_TRUNC); err == nil {
			err = os.Rename(temp, f.path)
		}
	}
	if err != nil {
		return backup, err
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return backup, err
	}
	return backup, errors.Join(dir.Sync(), dir.Close())
}

// put writes a file like f durably.
func (f *configFile) put(name string, text []byte, flag int) (err error) {
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|flag, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = errors.Join(err, os.Remove(name))
		}
	}()
	mode := fs.FileMode(0o644)
	if f.info != nil {
		mode = f.info.Mode().Perm()
		if st, ok := f.info.Sys().(*syscall.Stat_t); ok {
			if err := out.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	if err := out.Chmod(mode); err != nil {
		return err
	}
	return out.Sync()
}
