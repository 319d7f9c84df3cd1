// Package convert turns KubeEdge's manifests of devices, their models and their
// rules (devices.kubeedge.io v1beta1 and v1alpha2, rules.kubeedge.io v1) into those
// of devices.holdfast.io/v1beta1. What has no place there is warned of by object and
// field; what the definitions in build/manifests would refuse is an error. `holdfast
// convert` calls it, through common/adm. It is pure: it reads no file, and talks to
// no cluster.
package convert
