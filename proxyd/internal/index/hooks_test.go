package index

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// TestPayloads reads what registries send.
func TestPayloads(t *testing.T) {
	// An event of distribution 3, of each kind.
	event := func(action, target string) string {
		return `{"id":"a","timestamp":"2026-01-02T03:04:05Z","action":"` + action + `","target":{"mediaType":"application/vnd.oci.image.index.v1+json",
			"digest":"` + digest + `","size":1234,"length":1234,"repository":"team/app","url":"http://10.0.0.1:5000/v2/team/app/manifests/x"` + target + `},
			"request":{"id":"b","addr":"10.0.0.2:1234","host":"registry.test:5000","method":"PUT","useragent":"docker/28"},
			"actor":{"name":"ci"},"source":{"addr":"registry:5000","instanceID":"c"}}`
	}
	envelope := func(events ...string) string { return `{"events":[` + strings.Join(events, ",") + `]}` }
	resource := func(tag, ref string) string {
		return `{"resources":[{"digest":"` + digest + `","tag":"` + tag + `","resource_url":"` + ref + `"}],
			"repository":{"date_created":1,"name":"app","namespace":"team","repo_full_name":"team/app","repo_type":"private"}}`
	}
	const tagged = "[{registry.test/team/app:1 " + digest + "}]"
	for name, tt := range map[string]struct {
		read  func(*http.Request, *json.Decoder) ([]pushed, error)
		query string
		body  string
		want  string
	}{
		"push of a tag":  {distribution, "", envelope(event("push", `,"tag":"1"`)), "[{registry.test:5000/team/app:1 " + digest + "}]"},
		"another name":   {distribution, "?registry=registry.test", envelope(event("push", `,"tag":"1"`)), tagged},
		"push by digest": {distribution, "", envelope(event("push", "")), "[]"},
		"pull":           {distribution, "", envelope(event("pull", `,"tag":"1"`)), "[]"},
		"delete":         {distribution, "", envelope(event("delete", `,"tag":"1"`)), "[]"},
		"one of several": {distribution, "?registry=registry.test", envelope(event("push", ""), event("push", `,"tag":"1"`), event("mount", "")), tagged},
		"harbor":         {harbor, "", `{"type":"PUSH_ARTIFACT","occur_at":1,"operator":"ci","event_data":` + resource("1", "registry.test/team/app:1") + `}`, tagged},
		"harbor, CloudEvent": {harbor, "", `{"specversion":"1.0","id":"x","requestid":"y","source":"/projects/1/webhook/policies/1","type":"harbor.artifact.pushed",
			"datacontenttype":"application/json","operator":"ci","time":"2026-01-02T03:04:05Z","data":` + resource("1", "registry.test/team/app:1") + `}`, tagged},
		"harbor, by digest": {harbor, "", `{"type":"PUSH_ARTIFACT","event_data":` + resource(digest, "registry.test/team/app@"+digest) + `}`, "[]"},
		"harbor, pull":      {harbor, "", `{"type":"PULL_ARTIFACT","event_data":` + resource("1", "registry.test/team/app:1") + `}`, "[]"},
		"harbor, deletion":  {harbor, "", `{"specversion":"1.0","type":"harbor.artifact.deleted","data":` + resource("1", "registry.test/team/app:1") + `}`, "[]"},
		"harbor, a test":    {harbor, "", `{"type":"PUSH_ARTIFACT","event_data":{}}`, "[]"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/hooks/x"+tt.query, nil)
		got, err := tt.read(r, json.NewDecoder(strings.NewReader(tt.body)))
		if err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: got %v, %v, want %s", name, got, err, tt.want)
		}
	}
}
