// Package v1beta1 holds the types of the API group devices.holdfast.io: what a
// device is (DeviceModel), which devices there are and what they shall do
// (Device), and which application messages travel between nodes and the cloud
// (Route). Field names are those of KubeEdge's devices.kubeedge.io/v1beta1 where
// the meaning is the same. cloud/device, cloud/watch, edge/twin and the command
// use it; the CRDs are in build/manifests. It holds types and no logic.
package v1beta1
