package integration

import (
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// A container with a user namespace of its own sees the owners that the image says,
// in files that are here and in files that are not yet.
func TestUserNamespace(t *testing.T) {
	w, p, n := accelerated(t, slow)
	ref := w.push("redis", "v1")
	w.warm(p, ref)
	const look = "cd /; stat -c '%u:%g %a %n' usr/bin/redis-server data usr/bin/passwd; md5sum usr/bin/redis-server usr/bin/redis-check-rdb"
	n.pull(ref)
	mapped := func(id, script string) string {
		t.Helper()
		out, err := n.Ctr(t.Context(), "run", "--rm", "--snapshotter", starlight, "--remap-labels",
			"--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", ref, id, "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	early := mapped("early", "cat /proc/self/uid_map; "+look)
	ids, early, _ := strings.Cut(early, "\n")
	if strings.Join(strings.Fields(ids), " ") != "0 100000 65536" {
		t.Fatalf("got the mapping %q: the container has no user namespace", ids)
	}
	n.wait(ref)
	want, err := n.Output(t.Context(), sandbox.Run{Ref: ref, ID: "plain", Snapshotter: starlight, Argv: []string{"sh", "-c", look}})
	if err != nil {
		t.Fatal(err)
	}
	if early != want {
		t.Errorf("got in a user namespace, while bytes arrived:\n%swant as without:\n%s", early, want)
	}
	// It may change what is its own, and others do not see that.
	late := mapped("late", look+"; chown redis usr/bin/redis-check-rdb && echo new >>usr/bin/redis-check-rdb && stat -c %U usr/bin/redis-check-rdb")
	if late != want+"redis\n" {
		t.Errorf("got in a user namespace, when all was here:\n%swant:\n%sredis", late, want)
	}
	if got := n.output(ref, "after", "sh", "-c", look); got != want {
		t.Errorf("got after another container changed its own:\n%swant:\n%s", got, want)
	}
}
