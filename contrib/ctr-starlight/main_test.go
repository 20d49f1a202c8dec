package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func TestGolden(t *testing.T) {
	t.Setenv("CONTAINERD_NAMESPACE", "")
	proxies := []*api.Proxy{
		{Address: "http://near:8090", Registries: []string{"*.example", "docker.io"}},
		{Address: "https://far", Registries: []string{"*"}},
	}
	early := half()
	early.BytesLocal, early.ObjectsLocal = 1_000_000, 10
	late := half()
	late.BytesLocal, late.ObjectsLocal = 16_000_000, 700
	done := half()
	done.BytesLocal, done.ObjectsLocal, done.Complete, done.Rate = done.Bytes, done.Objects, true, 0
	failing := half()
	failing.Reason = "proxy http://near:8090: stalled"

	tests := []struct {
		name string
		f    *fake
		args [][]string
	}{
		{"status", &fake{images: images()}, [][]string{
			{"status"},
			{"status", app1},
			{"--namespace", "default", "status"},
			{"status", "-n", "k8s.io"},
			{"status", "registry.example/nope:1"},
			{"status", "one", "two"},
		}},
		{"status-json", &fake{images: images()}, [][]string{{"status", "--json"}, {"status", app1, "--json"}}},
		{"status-none", &fake{}, [][]string{{"status"}, {"status", "--json"}}},
		{"wait", &fake{waits: []*api.Image{early, early, late, done}}, [][]string{{"wait", "registry.example/app:2"}, {"wait", "-q", "registry.example/app:2"}, {"wait"}}},
		{"wait-plain", &fake{waits: images()[2:]}, [][]string{{"wait", plain}}},
		{"wait-fails", &fake{waits: []*api.Image{failing}, waitEnd: func(context.Context) error {
			return status.Error(codes.Aborted, "image was removed")
		}}, [][]string{{"wait", "registry.example/app:2"}}},
		{"wait-unknown", &fake{waitEnd: func(context.Context) error {
			return status.Error(codes.NotFound, `image "x" was not pulled`)
		}}, [][]string{{"wait", "x"}}},
		{"wait-timeout", &fake{waits: []*api.Image{failing}, waitEnd: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}}, [][]string{{"wait", "registry.example/app:2", "--timeout", "1s"}}},
		{"proxy", &fake{proxies: proxies, rtts: []time.Duration{100 * time.Millisecond, 102 * time.Millisecond, 101500 * time.Microsecond}}, [][]string{
			{"proxy", "ls"},
			{"proxy", "ls", "--json"},
			{"proxy", "ping"},
			{"proxy", "ping", "https://far", "-c", "1"},
			{"proxy", "ping", "-c", "0"},
			{"proxy", "pong"},
		}},
		{"proxy-down", &fake{proxies: []*api.Proxy{{Address: "http://down:1"}, {Address: "http://near:8090"}, {Address: "http://down:2"}}, rtts: []time.Duration{time.Millisecond}}, [][]string{
			{"proxy", "ping"},
		}},
		{"proxy-none", &fake{}, [][]string{{"proxy", "ls"}, {"proxy", "ls", "--json"}, {"proxy", "ping"}}},
		{"proxy-change", &fake{proxies: []*api.Proxy{{Address: "http://near:8090"}}, rtts: []time.Duration{time.Millisecond}}, [][]string{
			{"proxy", "add", "http://near:8090"},
			{"proxy", "add", "https://far", "--registry", "*.example", "--registry", "docker.io", "--ca", "/ca.pem", "--token-file", "/token"},
			{"list-proxy", "--json"},
			{"test", "--json", "https://far"},
			{"proxy", "rm", "https://far"},
			{"proxy", "rm", "http://near:8090"},
			{"proxy", "rm", "http://near:8090"},
			{"proxy", "add"},
		}},
		{"notify", &fake{}, [][]string{{"notify", app1}, {"notify", app1, "--json", "--user", "alice:pass:word"}, {"notify", app1, "-u", "bob"}, {"notify"}}},
		{"delta", &fake{}, [][]string{
			{"delta", "registry.example/app:2"},
			{"delta", app1, plain, "registry.example/app:2", "--top", "1"},
			{"delta", "--from", app1, "registry.example/app:2", "--json"},
			{"delta", "registry.example/app:2", "-u", "bob"},
			{"delta", "--top", "257", app1},
			{"delta"},
		}},
		{"missing", &fake{}, [][]string{{"status", "--missing", app1}, {"status", "--missing", "--json", app1}, {"status", "--missing"}}},
		{"fsck", &fake{problem: &api.Problem{Kind: "object", Name: "sha256:aa", Detail: "has other contents; fsck --repair fetches it again"}}, [][]string{
			{"fsck"}, {"fsck", "--json"}, {"fsck", "--repair"}, {"fsck", "extra"},
		}},
		{"fsck-clean", &fake{}, [][]string{{"fsck"}, {"fsck", "--json"}}},
		{"disk", &fake{}, [][]string{{"df"}, {"df", "--json"}, {"gc"}, {"gc", "--json"}}},
		{"version", &fake{}, [][]string{{"version"}, {"version", "--json"}, {"--version"}}},
		{"usage", &fake{}, [][]string{{}, {"foo"}, {"status", "--foo"}, {"status", "--help"}, {"--timeout", "soon", "status"}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			socket := tc.f.listen(t)
			var got strings.Builder
			for _, args := range tc.args {
				got.WriteString(execute(t.Context(), socket, args...) + "\n")
			}
			golden(t, tc.name, strings.ReplaceAll(got.String(), runtime.Version(), "GOVERSION"))
		})
	}
}

// TestHelp: each command's help is golden, and the manual knows the command.
func TestHelp(t *testing.T) {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "CTR_STARLIGHT_") || strings.HasPrefix(name, "CONTAINERD_") {
			t.Setenv(name, "")
		}
	}
	manual, err := os.ReadFile("../../docs/ctr-starlight.md")
	if err != nil {
		t.Fatal(err)
	}
	args := os.Args
	os.Args = []string{"ctr-starlight", "--generate-shell-completion"} // where the library looks for what to complete
	offered := execute(t.Context(), "/nonexistent", "--generate-shell-completion")
	os.Args = args
	var walk func(c *cli.Command, args []string)
	walk = func(c *cli.Command, args []string) {
		name := strings.Join(args, "-")
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join("help", name), execute(t.Context(), "/nonexistent", append(args, "--help")...))
			if want := "ctr-starlight " + strings.Join(args, " "); len(c.Commands) == 0 && !c.Hidden && !strings.Contains(string(manual), want) {
				t.Errorf("docs/ctr-starlight.md does not have %q", want)
			}
			if len(args) == 1 && !c.Hidden && !strings.Contains(offered, "\n"+args[0]) {
				t.Errorf("the shell is not offered %q", args[0])
			}
		})
		for _, sub := range c.Commands {
			walk(sub, append(slices.Clip(args), sub.Name))
		}
	}
	for _, c := range commands() {
		walk(c, []string{c.Name})
	}
}

// TestNoService: each way in which containerd is not there says what to do.
func TestNoService(t *testing.T) {
	stock := listen(t, func(*grpc.Server) {})
	gone := filepath.Join(t.TempDir(), "gone")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: gone, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	var got strings.Builder
	for _, socket := range []string{"/nonexistent/containerd.sock", gone, stock, "unix://" + stock} {
		for _, args := range [][]string{{"status"}, {"wait", "x"}} {
			out := execute(t.Context(), socket, args...)
			got.WriteString(strings.ReplaceAll(out, strings.TrimPrefix(socket, "unix://"), "SOCKET") + "\n")
		}
	}
	golden(t, "no-service", got.String())
}

func TestInterrupted(t *testing.T) {
	waiting := make(chan struct{})
	f := &fake{waits: []*api.Image{half()}, waitEnd: func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}}
	socket := f.listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-waiting
		cancel()
	}()
	if got := execute(ctx, socket, "wait", "x"); !strings.Contains(got, "interrupted") || !strings.HasSuffix(got, "[exit 1]\n") {
		t.Errorf("got %s", got)
	}
}

// TestConnectTimeout: containerd may be starting.
func TestConnectTimeout(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "late")
	out := make(chan string)
	go func() { out <- execute(t.Context(), socket, "--connect-timeout", "1m", "proxy", "ls", "--json") }()
	time.AfterFunc(150*time.Millisecond, func() {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Error(err)
			return
		}
		server := grpc.NewServer()
		api.RegisterStarlightServer(server, &fake{})
		t.Cleanup(server.Stop)
		_ = server.Serve(l)
	})
	if got := <-out; !strings.Contains(got, "[]") {
		t.Errorf("got %s", got)
	}
}

func TestCompletion(t *testing.T) {
	socket := (&fake{images: images(), proxies: []*api.Proxy{{Address: "http://near:8090"}}}).listen(t)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, app1},
		{[]string{"wait"}, plain},
		{[]string{"proxy", "ping"}, "http://near:8090"},
		{[]string{"delta"}, app1},
		{[]string{"convert"}, app1},
		{[]string{"install", "--"}, "--registry"},
		{[]string{"uninstall", "--"}, "--dry-run"},
		{[]string{"reset", "--"}, "--root"},
		{[]string{"convert", "--"}, "--insecure-source"},
	} {
		if got := execute(t.Context(), socket, append(tc.args, "--generate-shell-completion")...); !strings.Contains(got, tc.want) {
			t.Errorf("%q: got %s, want %s among it", tc.args, got, tc.want)
		}
	}
	if got := execute(t.Context(), "/nonexistent", "status", "--generate-shell-completion"); strings.Contains(got, "stderr") {
		t.Errorf("without containerd: got %s, want silence", got)
	}
	if got := execute(t.Context(), socket, "completion", "bash"); !strings.Contains(got, "complete ") {
		t.Errorf("got %s, want a script", got)
	}
}
