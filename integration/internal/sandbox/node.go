package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/tools"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// NodeConfig of a node.
type NodeConfig struct {
	Name     string
	Binaries tools.Binaries
	// Proxies are the addresses of proxyds; with none, the engine has no section.
	Proxies []string
	// DefaultSnapshotter makes starlight the default.
	DefaultSnapshotter bool
	// Engine are further lines of the engine's section.
	Engine string
	// Config is appended to containerd's configuration.
	Config string
	// CRI loads the CRI plugins.
	CRI bool
	// Path are directories to look up programs in before those of $PATH.
	Path []string
	// Traces is the URL of an OTLP receiver; without one, tracing is not loaded.
	Traces string
	// Env are further variables of its environment.
	Env []string
	// Namespace is where it runs; default: the near end of the link.
	Namespace *wan.Namespace
}

// Node is a containerd with its own root, state and socket.
type Node struct {
	// Root is containerd's root directory.
	Root string
	// Socket is the address of its API.
	Socket string
	// Dir holds everything of the node.
	Dir string

	c    NodeConfig
	proc *process.Process
	logs []string // of earlier lives

	kubelet *Kubelet // of this node, if it has one
}

// StartNode starts containerd and waits until it serves.
func (w *World) StartNode(ctx context.Context, c NodeConfig) (*Node, error) {
	if c.Namespace == nil {
		c.Namespace = w.Link.Edge
	}
	dir := filepath.Join(w.Dir, c.Name)
	n := &Node{c: c, Dir: dir, Root: filepath.Join(dir, "root"), Socket: filepath.Join(dir, "containerd.sock")}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	// The shim is looked up in the path and beside containerd; a directory with
	// links makes sure it is the one meant.
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(c.Binaries.Shim, filepath.Join(bin, filepath.Base(c.Binaries.Shim))); err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.configFile(), []byte(n.config()), 0o600); err != nil {
		return nil, err
	}
	w.nodes = append(w.nodes, n)
	return n, n.Start(ctx)
}

func (n *Node) configFile() string { return filepath.Join(n.Dir, "config.toml") }

func (n *Node) config() string {
	var b strings.Builder
	disabled := []string{"io.containerd.nri.v1.nri"}
	if n.c.Traces == "" {
		disabled = append(disabled, "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing")
	}
	if !n.c.CRI {
		disabled = append(disabled, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.podsandbox.controller.v1.podsandbox")
	}
	fmt.Fprintf(&b, "version = 3\nroot = %q\nstate = %q\nimports = []\ndisabled_plugins = [%s]\n",
		n.Root, filepath.Join(n.Dir, "state"), quoted(disabled))
	fmt.Fprintf(&b, "[grpc]\n  address = %q\n[debug]\n  address = %q\n  level = \"debug\"\n", n.Socket, n.DebugSocket())
	fmt.Fprintf(&b, "[plugins.'io.containerd.internal.v1.opt']\n  path = %q\n", filepath.Join(n.Dir, "opt"))
	if n.c.Proxies != nil || n.c.DefaultSnapshotter || n.c.Engine != "" {
		b.WriteString("[plugins.'io.containerd.starlight.v1.engine']\n")
		if n.c.DefaultSnapshotter {
			b.WriteString("  default_snapshotter = true\n")
		}
		b.WriteString(n.c.Engine)
		for _, p := range n.c.Proxies {
			fmt.Fprintf(&b, "  [[plugins.'io.containerd.starlight.v1.engine'.proxies]]\n    address = %q\n    registries = [\"*\"]\n", p)
		}
	}
	b.WriteString(n.c.Config)
	return b.String()
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(q, ", ")
}

// Start starts containerd again after Stop or Kill.
func (n *Node) Start(ctx context.Context) error {
	if n.proc != nil {
		n.logs = append(n.logs, n.proc.Log.String())
	}
	cmd := exec.Command(n.c.Binaries.Containerd, "--config", n.configFile())
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(append(append([]string{filepath.Join(n.Dir, "bin")}, n.c.Path...), os.Getenv("PATH")), ":"))
	cmd.Env = append(cmd.Env, n.c.Env...)
	if n.c.Traces != "" {
		cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+n.c.Traces, "OTEL_BSP_SCHEDULE_DELAY=100")
	}
	p, err := process.Start(n.c.Namespace, "containerd "+n.c.Name, cmd)
	if err != nil {
		return err
	}
	n.proc = p
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	return p.WaitLog(ctx, "containerd successfully booted")
}

// Configure changes the configuration; it holds from the next Start.
func (n *Node) Configure(change func(*NodeConfig)) error {
	change(&n.c)
	return os.WriteFile(n.configFile(), []byte(n.config()), 0o600)
}

// Stop asks containerd to end. Containers go on.
func (n *Node) Stop() error { return n.proc.Stop() }

// Kill kills containerd as a crash would. Containers go on.
func (n *Node) Kill() { n.proc.Kill() }

// Done is closed when containerd has ended.
func (n *Node) Done() <-chan struct{} { return n.proc.Done() }

// PID of containerd.
func (n *Node) PID() int { return n.proc.PID() }

// Log returns all that containerd has said in all its lives.
func (n *Node) Log() string {
	all := strings.Join(n.logs, "")
	if n.proc != nil {
		all += n.proc.Log.String()
	}
	return all
}

// WaitLog waits until containerd says something in its present life.
func (n *Node) WaitLog(ctx context.Context, pattern string) error {
	return n.proc.WaitLog(ctx, pattern)
}

// Command is ctr (or ctr-starlight if args[0] is "starlight") for this node.
func (n *Node) command(ctx context.Context, args []string) *exec.Cmd {
	bin := n.c.Binaries.Ctr
	if len(args) > 0 && args[0] == "starlight" {
		bin, args = n.c.Binaries.CtrStarlight, args[1:]
	}
	c := exec.CommandContext(ctx, bin, append([]string{"--address", n.Socket}, args...)...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	return c
}

// Ctr runs ctr with args and returns its standard output. With "starlight" as the
// first argument it runs ctr-starlight.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return process.Run(n.c.Namespace, n.command(ctx, args))
}

// StartCtr starts ctr and does not wait for it.
func (n *Node) StartCtr(ctx context.Context, args ...string) (*process.Process, error) {
	return process.Start(n.c.Namespace, "ctr "+strings.Join(args, " "), n.command(ctx, args))
}

// Pull pulls an image in plain HTTP with further flags.
func (n *Node) Pull(ctx context.Context, ref string, flags ...string) error {
	_, err := n.Ctr(ctx, append(append([]string{"image", "pull", "--plain-http"}, flags...), ref)...)
	return err
}

// Close removes the containers and stops containerd. What resists is killed with
// the world.
func (n *Node) Close() error {
	if n.proc == nil {
		return nil
	}
	if n.kubelet != nil { // it would start them again
		if err := n.kubelet.Stop(); err != nil {
			return err
		}
	}
	select {
	case <-n.proc.Done():
	default:
		n.removeContainers()
		if err := n.proc.Stop(); err != nil {
			return err
		}
	}
	killBelow(n.Dir)
	return nil
}

// Remove closes the node and removes all that it has on the disk.
func (n *Node) Remove() error {
	return errors.Join(n.Close(), RemoveTree(n.Dir))
}

// removeContainers ends what runs in an orderly way, so that runc removes cgroups.
// It is best effort: the rest is killed.
func (n *Node) removeContainers() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	spaces, err := n.Ctr(ctx, "namespaces", "ls", "-q")
	if err != nil {
		return
	}
	for ns := range strings.FieldsSeq(spaces) {
		ids, err := n.Ctr(ctx, "-n", ns, "containers", "ls", "-q")
		if err != nil {
			continue
		}
		for id := range strings.FieldsSeq(ids) {
			_ = n.RemoveContainer(ctx, ns, id)
		}
	}
}

// RemoveContainer kills a container and removes it and its snapshot.
func (n *Node) RemoveContainer(ctx context.Context, namespace, id string) error {
	_, taskErr := n.Ctr(ctx, "-n", namespace, "tasks", "rm", "-f", id)
	_, err := n.Ctr(ctx, "-n", namespace, "containers", "rm", id)
	if err != nil {
		return errors.Join(taskErr, err)
	}
	return nil
}
