package integration

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/starlight-delta/starlight/integration/internal/registry"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// What a kubelet does with an imagePullSecret: the credentials of the CRI request
// reach proxyd, and the image is a delta in CRI's namespace.
func TestCRIPullsPrivateImages(t *testing.T) {
	w := newWorld(t, lan)
	r := w.private(registry.Token, 5100, "tinyhttp", "v1")
	ref := r.Ref("secret/tinyhttp", "v1")
	p := w.proxydWith(sandbox.ProxydConfig{Registries: []string{r.Host}})
	n := w.node(sandbox.NodeConfig{CRI: true, Proxies: []string{p.Address}, Config: w.criConfig(w.Registry.Ref("pause", "v1"))})
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	images := runtime.NewImageServiceClient(conn)
	pull := func(password string) (*runtime.PullImageResponse, error) {
		return images.PullImage(t.Context(), &runtime.PullImageRequest{
			Image: &runtime.ImageSpec{Image: ref},
			Auth:  &runtime.AuthConfig{Username: registry.User, Password: password},
		})
	}
	if _, err := pull("wrong"); err == nil {
		t.Error("a pull with a wrong password succeeds")
	}
	pulled, err := pull(registry.Password)
	if err != nil {
		t.Fatal(err)
	}
	if s := n.status1(ref); s.Mode != "delta" || s.Namespace != "k8s.io" {
		t.Errorf("got %+v, want a delta in k8s.io", s)
	}
	status, err := images.ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil || status.GetImage().GetId() == "" {
		t.Errorf("image status %v, %v after pull of %s", status, err, pulled.GetImageRef())
	}
	n.wait(ref)
	info, err := images.ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil || len(info.GetImageFilesystems()) == 0 {
		t.Errorf("image file system: %v, %v", info, err)
	}
}

// criConfig is the configuration of CRI on a node of the world.
func (w *world) criConfig(pause string) string {
	return `
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "starlight"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "` + pause + `"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "` + w.certs() + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
`
}
