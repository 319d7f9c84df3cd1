// Package e2e holds the stories that a user would tell, on real parts: a control
// plane, cloudcore, edgecore and containerd, put together by the real commands.
// Its tests have a cloud in common and nodes of their own.
package e2e
