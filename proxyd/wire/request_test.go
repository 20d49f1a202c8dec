package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestRequestRoundTrip(t *testing.T) {
	small := &DeltaRequest{Ref: "r/i:t", Platform: "linux/amd64", Credentials: &Credentials{Secret: "s"}}
	large := &DeltaRequest{Ref: "r/i:t"}
	for i := range 200 {
		large.Have = append(large.Have, Have{DiffID: digestOf(fmt.Sprint(i)), Missing: []byte{1, 2, 3}})
	}
	for encoding, want := range map[string]*DeltaRequest{"": small, EncodingZstd: large} {
		body, enc, err := EncodeRequest(want)
		if err != nil || enc != encoding {
			t.Fatalf("EncodeRequest: got encoding %q, %v, want %q", enc, err, encoding)
		}
		var got DeltaRequest
		if err := DecodeRequest(bytes.NewReader(body), enc, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, &got); d != "" {
			t.Errorf("request differs (-want +got):\n%s", d)
		}
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	bomb, _ := Compress(nil, make([]byte, MaxRequest+1))
	d := digestOf("d").String()
	tests := map[string]struct {
		body, encoding string
		req            any
	}{
		"no JSON":           {"{", "", new(DeltaRequest)},
		"null":              {"null", "", new(DeltaRequest)},
		"two values":        {`{"ref":"r"}{}`, "", new(DeltaRequest)},
		"no ref":            {"{}", "", new(DeltaRequest)},
		"digest":            {`{"ref":"r","have":[{"diffID":"sha256:Zz"}]}`, "", new(DeltaRequest)},
		"many partials":     {`{"ref":"r","partial":[{"object":"` + d + `"}` + strings.Repeat(`,{"object":"`+d+`"}`, MaxPartial) + "]}", "", new(DeltaRequest)},
		"many layers":       {`{"ref":"r","have":[{"diffID":"` + d + `"}` + strings.Repeat(`,{"diffID":"`+d+`"}`, MaxHave) + "]}", "", new(DeltaRequest)},
		"encoding":          {`{"ref":"r"}`, "br", new(DeltaRequest)},
		"no zstd":           {`{"ref":"r"}`, EncodingZstd, new(DeltaRequest)},
		"bomb":              {string(bomb), EncodingZstd, new(DeltaRequest)},
		"long":              {strings.Repeat(" ", MaxRequest+1), "", new(DeltaRequest)},
		"plan, no ref":      {"{}", "", new(PlanRequest)},
		"plan, from no ref": {`{"ref":"r","from":[{}]}`, "", new(PlanRequest)},
		"plan, from many":   {`{"ref":"r","from":[{"ref":"a"}` + strings.Repeat(`,{"ref":"a"}`, MaxFrom) + "]}", "", new(PlanRequest)},
		"plan, two haves":   {`{"ref":"r","from":[{"ref":"a"}],"have":[{"diffID":"` + d + `"}]}`, "", new(PlanRequest)},
		"plan, long list":   {`{"ref":"r","top":257}`, "", new(PlanRequest)},
		"plan of a part":    {`{"ref":"r","headerOnly":true}`, "", new(PlanRequest)},
		"no objects":        {`{"ref":"r"}`, "", new(ObjectsRequest)},
		"objects, no ref":   {`{"objects":[{"object":1}]}`, "", new(ObjectsRequest)},
		"negative object":   {`{"ref":"r","objects":[{"object":-1}]}`, "", new(ObjectsRequest)},
		"many objects":      {`{"ref":"r","objects":[{}` + strings.Repeat(",{}", MaxAsk) + "]}", "", new(ObjectsRequest)},
		"blob of no size":   {`{"ref":"r","digest":"` + d + `","size":-1}`, "", new(BlobRequest)},
		"blob of no digest": {`{"ref":"r"}`, "", new(BlobRequest)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := DecodeRequest(strings.NewReader(tt.body), tt.encoding, tt.req)
			if !errors.Is(err, toc.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestDecodeRequestPassesErrorsOn(t *testing.T) {
	err := DecodeRequest(iotest.ErrReader(io.ErrClosedPipe), "", new(DeltaRequest))
	if !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, toc.ErrInvalid) {
		t.Errorf("got %v, want the error of the body", err)
	}
}
