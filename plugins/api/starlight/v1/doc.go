// Package starlight is the API of the Starlight service on containerd's socket.
package starlight

//go:generate ../../generate.sh
